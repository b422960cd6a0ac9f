"""A learner node whose models can be pulled, as those of nodes that run code of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.published import Published


class PublishingLearner(LearnerNode):
    """Publishes its parameters, a flat vector, as a version after each round."""

    def __init__(self, versions: Published, model: Any, data: Any, **settings: Any) -> None:
        super().__init__(model, data, **settings)
        self.versions = versions

    def apply_server_gradient(self, gradient: Tensor) -> None:
        """The step that all take, and a version."""
        super().apply_server_gradient(gradient)
        self.versions.publish(parameters=self.get_parameters())

    def apply_server_update(self, update: Tensor) -> None:
        """The step that all take, and a version."""
        super().apply_server_update(update)
        self.versions.publish(parameters=self.get_parameters())

    def adopt(self, model: Tensor) -> None:
        """Go on from a mixed model, and a version."""
        super().adopt(model)
        self.versions.publish(parameters=self.get_parameters())

    def _test(self, phase: str, **kwargs: Any) -> dict[str, float]:
        return self.evaluate()
