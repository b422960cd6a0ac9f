"""Nodes whose work runs as pipelines: honest ones that compute gradients, Byzantine ones that run an attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from byzflow.actors import ActorPool, ActorPoolConfig
from byzflow.errors import FederationError
from byzflow.federation.applications import (
    ByzantineNodeApplication,
    HonestNodeApplication,
    Metadata,
)
from byzflow.federation.nodes import ByzantineNode, HonestNode
from byzflow.federation.vector import Buffers, Integers, ModelVector
from byzflow.graph import CallableOp, make_single_operator_graph
from byzflow.operators import Attack, Operator
from byzflow.spec import parse_attack

Workers = ActorPool | ActorPoolConfig | Sequence[ActorPoolConfig] | None
OF_A_BATCH = ("model", "x", "y")


class ModelOfANode:
    """What gossip and the checks on models need of a node that has an attribute `model`, a module."""

    model: nn.Module
    buffers: ClassVar[Buffers] = "local"
    """What becomes of its floating buffers, and of its counters: see `ModelVector`."""
    integers: ClassVar[Integers] = "local"
    lr: float

    @cached_property
    def _vector(self) -> ModelVector:
        """The model as one flat vector. Raises FederationError for a node without one."""
        module = getattr(self, "model", None)
        if not isinstance(module, nn.Module):
            raise FederationError(f"{type(self).__name__} needs an attribute `model`, a module, to do this")
        return ModelVector(module, buffers=self.buffers, integers=self.integers)

    def get_parameters(self) -> Tensor:
        """(d,): the model as a flat vector; a copy."""
        return self._vector.get().clone()

    def set_parameters(self, vector: Tensor) -> None:
        """Make a flat vector (d,) the model."""
        self._vector.set(vector)

    def digest(self) -> str:
        """SHA-256 of the model; nothing without one."""
        return self._vector.digest() if isinstance(getattr(self, "model", None), nn.Module) else ""

    def stepped(self, gradient: Tensor) -> Tensor:
        """(d,): the model after a step of size `lr` along a gradient of its parameters."""
        half = self.get_parameters()
        half[: gradient.numel()] -= self.lr * gradient.to(half)  # mixed buffers stand behind the parameters
        return half


def gradient_of(model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """(d,): the flat gradient of criterion(model(x), y) by all parameters; their own gradients stay as they are."""
    with torch.enable_grad():
        found = torch.autograd.grad(criterion(model(x), y), list(model.parameters()), materialize_grads=True)
    return torch.cat([each.flatten() for each in found])


class DistributedHonestNode(ModelOfANode, HonestNode):
    """An honest node that computes on a pool. Subclasses write `local_honest_gradient`, `next_batch` and
    `apply_server_gradient`; those with a `model` take part in gossip too.
    """

    def __init__(
        self,
        *,
        actor_pool: Workers = None,
        aggregator: str | Operator = "median",
        metadata: Metadata = None,
        name: str | None = None,
    ) -> None:
        self.application = HonestNodeApplication(
            name=name or type(self).__name__, actor_pool=actor_pool, metadata=metadata
        )
        rule = make_single_operator_graph(node_name="aggregate", operator=aggregator, input_keys=("gradients",))
        self.application.register_pipeline(HonestNodeApplication.AGGREGATION_PIPELINE, rule)
        step = CallableOp(lambda x, y: self.local_honest_gradient(x=x, y=y))
        own = make_single_operator_graph(node_name="honest_gradient", operator=step, input_keys=("x", "y"))
        self.application.register_pipeline(HonestNodeApplication.GRADIENT_PIPELINE, own)

    def local_honest_gradient(self, *, x: Tensor, y: Tensor) -> Tensor:
        """(d,): the flat gradient of the loss on a batch."""
        raise NotImplementedError(f"{type(self).__name__} needs local_honest_gradient(*, x, y)")

    def honest_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """(d,): the pipeline "honest_gradient"."""
        gradient: Tensor = self.application.honest_gradient_sync({"x": x, "y": y})
        return gradient

    async def aggregate(self, gradients: Sequence[Tensor]) -> Tensor:
        """The pipeline "aggregate"."""
        result: Tensor = await self.application.aggregate(gradients=gradients)
        return result

    def aggregate_sync(self, gradients: Sequence[Tensor]) -> Tensor:
        """The same without an event loop."""
        result: Tensor = self.application.aggregate_sync(gradients=gradients)
        return result

    def half_step(self) -> Tensor:
        """(d,): the model after a step on the next batch; the model itself stays."""
        return self.stepped(self.honest_gradient_for_next_batch())

    @property
    def pool(self) -> ActorPool | None:
        """The application's."""
        return self.application.pool

    async def shutdown_distributed(self) -> None:
        """End the application."""
        await self.application.shutdown()


class DistributedByzantineNode(ModelOfANode, ByzantineNode):
    """A Byzantine node that runs an attack as a pipeline.

    The attack's flags say what it is given: the honest vectors, this node's own gradient, or its `model` and batch;
    the latter two need an attribute `model`, a `next_batch`, and a `criterion` other than cross entropy where that is
    the loss. Subclasses that write `byzantine_gradient` need no attack.
    """

    criterion: Any = staticmethod(nn.functional.cross_entropy)
    lr: float = 0.05

    def __init__(
        self,
        *,
        actor_pool: Workers = None,
        attack: str | Attack | None = None,
        metadata: Metadata = None,
        name: str | None = None,
    ) -> None:
        """Raises FederationError without an attack."""
        self.application = ByzantineNodeApplication(
            name=name or type(self).__name__, actor_pool=actor_pool, metadata=metadata
        )
        self.attack: Attack | None = None
        if attack is None:
            if type(self).byzantine_gradient is DistributedByzantineNode.byzantine_gradient:
                raise FederationError(f"{type(self).__name__} needs an attack, or a byzantine_gradient of its own")
            return
        self.attack = operator = parse_attack(attack)
        graph = make_single_operator_graph(node_name="attack", operator=operator, input_keys=self.needs)
        self.application.register_pipeline(ByzantineNodeApplication.ATTACK_PIPELINE, graph)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what the attack is given."""
        if self.attack is None:
            return ()
        flags = {
            "honest_grads": self.attack.uses_honest_grads,
            "base_grad": self.attack.uses_base_grad,
        }
        return (*(OF_A_BATCH if self.attack.uses_model_batch else ()), *(name for name, used in flags.items() if used))

    def prepare_attack_inputs(
        self, *, x: Any = None, y: Any = None, honest_grads: Any = None, base_grad: Any = None, model: Any = None
    ) -> dict[str, Any]:
        """The attack's inputs, those that are not given from this node itself. Raises FederationError for others."""
        needs = self.needs
        module = getattr(self, "model", None) if model is None else model
        if "base_grad" in needs and base_grad is None and module is not None:
            base_grad = self.base_gradient(module, x, y)
        given = {"model": module, "x": x, "y": y, "honest_grads": honest_grads, "base_grad": base_grad}
        if missing := [name for name in needs if given[name] is None]:
            raise FederationError(
                f"the attack {self.attack} needs {', '.join(missing)}: give the node a `model` and a next_batch()"
                if missing != ["honest_grads"]
                else f"the attack {self.attack} needs honest_grads, the honest vectors"
            )
        return {name: given[name] for name in needs}

    def base_gradient(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """(d,): this node's own clean gradient on a batch."""
        return gradient_of(model, self.criterion, x, y)

    def byzantine_gradient(self, x: Tensor, y: Tensor, honest_grads: Sequence[Tensor] | None = None) -> Tensor:
        """(d,): the pipeline "attack"."""
        inputs = self.prepare_attack_inputs(x=x, y=y, honest_grads=honest_grads)
        lie: Tensor = self.application.run_attack_sync(inputs=inputs)
        return lie

    async def byzantine_gradient_async(self, **given: Any) -> Tensor:
        """The same in an event loop; takes what `prepare_attack_inputs` takes."""
        return await self.run_attack(inputs=self.prepare_attack_inputs(**given))

    async def run_attack(self, *, inputs: Mapping[str, Any]) -> Tensor:
        """The pipeline "attack"."""
        lie: Tensor = await self.application.run_attack(inputs=inputs)
        return lie

    def half_lie(self, honest: Sequence[Tensor], place: int, f: int) -> Tensor | None:
        """In gossip: attacks on honest vectors see the models of the half steps; others make a step of their own."""
        lie = self.lie(honest, place, f)
        of_its_own = self.attack is not None and not self.attack.uses_honest_grads
        return self.stepped(lie) if lie is not None and of_its_own else lie

    def adopt(self, model: Tensor) -> None:
        """Its own model follows, if it has one."""
        if isinstance(getattr(self, "model", None), nn.Module):
            self.set_parameters(model)

    @property
    def pool(self) -> ActorPool | None:
        """The application's."""
        return self.application.pool

    async def shutdown_distributed(self) -> None:
        """End the application."""
        await self.application.shutdown()


__all__ = ["DistributedByzantineNode", "DistributedHonestNode", "ModelOfANode", "gradient_of"]
