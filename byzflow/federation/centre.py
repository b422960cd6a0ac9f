"""The centre of a star that keeps a model of its own, in step with its workers' bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from byzflow.errors import ModelError
from byzflow.federation.evaluation import evaluate
from byzflow.federation.optimizer import OptimizerStep
from byzflow.federation.vector import ModelVector


class Centre:
    """A model without data, which takes the same `OptimizerStep` as the learners.

    `after` is called after each step, before anybody else hears of it: what it writes down is not lost.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.05,
        momentum: float = 0.0,
        *,
        test: Any = None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.test, self.after = ModelVector(module), test, after
        self.velocity: Tensor | None = None
        self._step = OptimizerStep(lr, momentum)

    def apply_server_gradient(self, gradient: Tensor) -> None:
        """The step that all take. ModelError for another length, NonFiniteRows if the model would be broken by it."""
        x = self.model.get()
        if gradient.shape != x.shape:
            raise ModelError(f"the model has a gradient of {len(x)} numbers, got {tuple(gradient.shape)}")
        new, velocity = self._step(x, gradient.to(x), self.velocity)
        self.model.set(new, finite=True)
        self.velocity = velocity
        self.after()

    def digest(self) -> str:
        """SHA-256 of the model."""
        return self.model.digest()

    def evaluate(self) -> dict[str, float]:
        """Accuracy and loss on the test data."""
        return {} if self.test is None else evaluate(self.model.module, self.test)

    def state(self) -> dict[str, Tensor]:
        """Copies of the model, "vector", and of its momentum, "velocity", if there is one."""
        state = {"vector": self.model.get().clone()}
        return state if self.velocity is None else state | {"velocity": self.velocity.clone()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave. ModelError if it is of another model."""
        for name in state:
            if name in ("vector", "velocity") and state[name].shape != self.model.get().shape:
                raise ModelError(f"the {name} has {len(state[name])} numbers, the model {len(self.model)}")
        self.model.set(state["vector"], finite=True)
        self.velocity = state.get("velocity")
