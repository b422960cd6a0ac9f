"""The centre of a star that keeps a model of its own, in step with its workers' bit by bit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from torch import Tensor, nn

from byzflow.errors import ModelError
from byzflow.federation.evaluation import evaluate
from byzflow.federation.optimizer import OptimizerStep
from byzflow.federation.vector import ModelVector, check_finite

State = dict[str, Tensor]
"""The model, "vector", and its momentum, "velocity", if there is one."""


async def _nothing(state: State) -> None:
    """Write nothing down."""


class Centre:
    """A model without data, which takes the same `OptimizerStep` as the learners.

    `before` is awaited with the state that a step leads to, which nobody changes, before the step is taken: who asks
    for the model meanwhile is given the old one, and what `before` writes down is there when others hear of the step.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.05,
        momentum: float = 0.0,
        *,
        test: Any = None,
        before: Callable[[State], Awaitable[None]] = _nothing,
    ) -> None:
        self.model, self.test, self.before = ModelVector(module), test, before
        self.velocity: Tensor | None = None
        self._step = OptimizerStep(lr, momentum)

    async def apply_server_gradient(self, gradient: Tensor) -> None:
        """The step that all take. ModelError for another length, NonFiniteRows if the model would be broken by it.

        An error of `before` is raised once the step is taken: the others take it, too.
        """
        x = self.model.get()
        if gradient.shape != x.shape:
            raise ModelError(f"the model has a gradient of {len(x)} numbers, got {tuple(gradient.shape)}")
        new, velocity = self._step(x, gradient.to(x), self.velocity)
        check_finite(new)
        try:
            await self.before(_state(new, velocity))
        finally:
            self.model.set(new)
            self.velocity = velocity

    def digest(self) -> str:
        """SHA-256 of the model."""
        return self.model.digest()

    def evaluate(self) -> dict[str, float]:
        """Accuracy and loss on the test data."""
        return {} if self.test is None else evaluate(self.model.module, self.test)

    def state(self) -> State:
        """A copy."""
        return _state(self.model.get().clone(), None if self.velocity is None else self.velocity.clone())

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave. ModelError if it is of another model."""
        for name in state:
            if name in ("vector", "velocity") and state[name].shape != self.model.get().shape:
                raise ModelError(f"the {name} has {len(state[name])} numbers, the model {len(self.model)}")
        self.model.set(state["vector"], finite=True)
        self.velocity = state.get("velocity")


def _state(vector: Tensor, velocity: Tensor | None) -> State:
    return {"vector": vector} if velocity is None else {"vector": vector, "velocity": velocity}
