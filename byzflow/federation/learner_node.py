"""An honest node made of a model and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from byzflow.errors import ModelError
from byzflow.federation.batches import TensorBatches
from byzflow.federation.learner import Learner
from byzflow.federation.nodes import HonestNode
from byzflow.federation.optimizer import OptimizerStep


class LearnerNode(HonestNode):
    """A `Learner` that takes part in a federation.

        LearnerNode(module, (x, y), lr=0.1, momentum=0.9, seed=3)
        LearnerNode(module, loader, local_steps=20, test=split)

    Parameters
    ----------
    learner : a `Learner`, or a module, in which case `data` and `settings` are what a Learner is made of.
    test : what `evaluate` looks at: (x, y), a `Split` or a loader; nothing is evaluated without it.
    server_lr, server_momentum : of the step that all nodes take with aggregated updates.
    """

    def __init__(
        self,
        learner: Any,
        data: Any = None,
        *,
        test: Any = None,
        server_lr: float = 1.0,
        server_momentum: float = 0.0,
        **settings: Any,
    ) -> None:
        self.learner = learner if isinstance(learner, Learner) else Learner(learner, data, **settings)
        self.test = test
        self._server_step = OptimizerStep(server_lr, server_momentum)
        self._server_velocity: Tensor | None = None

    def samples(self) -> float:
        """How many samples its data has; 1 where the data does not say."""
        return float(self.learner.batches.samples or 1)

    def next_batch(self) -> Any:
        """The learner's next batch."""
        return self.learner.batch()

    def honest_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """(d,): the gradient on a batch."""
        return self.learner.gradient(x, y)

    def honest_gradient_for_next_batch(self) -> Tensor:
        """(d,): the gradient on the next batch, of any kind."""
        return self.learner.gradient()

    def apply_server_gradient(self, gradient: Tensor) -> None:
        """The step that all take with this gradient."""
        self.learner.step(gradient)

    def local_update(self) -> Tensor:
        """(d,): how far the learner's local steps lead; the model itself stays."""
        start = self.learner.model.get().clone()
        trained = self.learner.train()
        self.learner.model.set(start)
        return trained.update

    def apply_server_update(self, update: Tensor) -> None:
        """The step that all take with this aggregated update."""
        x = self.learner.model.get()
        new, self._server_velocity = self._server_step(x, -update.to(x), self._server_velocity)
        self.learner.apply(new)

    def set_lr(self, lr: float) -> None:
        """Another step size, of all the learner's steps."""
        self.learner.optimizer_step = replace(self.learner.optimizer_step, lr=lr)

    def rejoin(self, round: int, model: Tensor, velocity: Tensor | None) -> None:
        """Go on as one who took part in all rounds before this: from its model and momentum, (d,), at its batch."""
        learner = self.learner
        learner.apply(model)
        learner.velocity = None if velocity is None else velocity.to(learner.model.get(), copy=True)
        learner.steps = round
        batches = learner.batches
        if isinstance(batches, TensorBatches):
            batches.seek(*divmod(round, len(batches.x) // batches.size))

    def half_step(self) -> Tensor:
        """(d,): the model after the learner's local steps; the model itself stays."""
        if self.learner.local_steps == 1:
            return self.learner.half_step()
        return self.learner.model.get() + self.local_update()

    def get_parameters(self) -> Tensor:
        """(d,): the model; a copy."""
        return self.learner.model.get().clone()

    def set_parameters(self, vector: Tensor) -> None:
        """Make it the model."""
        self.learner.apply(vector)

    def digest(self) -> str:
        """SHA-256 of the model, for nodes whose models are to be equal."""
        return self.learner.model.digest()

    def evaluate(self) -> dict[str, float]:
        """Accuracy and loss on the test data."""
        return {} if self.test is None else self.learner.evaluate(self.test)

    def state(self) -> dict[str, Tensor | int]:
        """All that a restarted node needs."""
        extra = {} if self._server_velocity is None else {"server_velocity": self._server_velocity.clone()}
        return self.learner.state() | extra

    def load_state(self, state: Mapping[str, Tensor | int]) -> None:
        """Take up what `state` gave; nothing changes unless all of it fits. ModelError and DataError as a learner's."""
        velocity, like = state.get("server_velocity"), self.learner.model.get()
        if velocity is not None and not (isinstance(velocity, Tensor) and velocity.shape == like.shape):
            raise ModelError(f"the state's server_velocity is not one of the model's {len(like)} numbers")
        self.learner.load_state({name: value for name, value in state.items() if name != "server_velocity"})
        self._server_velocity = None if velocity is None else velocity.to(like, copy=True)
