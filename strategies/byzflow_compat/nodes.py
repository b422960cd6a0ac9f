"""ByzPy's mixins for nodes of peer-to-peer runs, and its actors, which start the backend that they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from byzflow.actors import Backend
from byzflow.custom import compose
from byzflow.federation.distributed import ModelOfANode, gradient_of
from byzflow.federation.node_actor import NodeActor


class P2PHonestMixin(ModelOfANode):
    """For a node with `model`, `criterion` and `next_batch`: what peer-to-peer training asks of it."""

    criterion: Any
    p2p_agg: Any = "median"
    p2p_pre: Any = None

    def half_step(self) -> Tensor:
        """(d,): the model after a step on the next batch; the model itself stays."""
        x, y = self.next_batch()  # type: ignore[attr-defined]
        return self.stepped(gradient_of(self.model, self.criterion, x, y))

    def p2p_half_step(self, lr: float) -> Tensor:
        """The same with this step size, and the model moves."""
        self.lr = lr
        half = self.half_step()
        self.set_parameters(half)
        return half

    def p2p_aggregate_and_set(self, self_theta_half: Tensor, neighbor_vectors: Sequence[Tensor]) -> None:
        """Go on from the rule's result on the own and the neighbours' vectors."""
        self.set_parameters(compose(self.p2p_pre, self.p2p_agg)([self_theta_half, *neighbor_vectors]))

    def get_param_vector(self) -> Tensor:
        """(d,): the model; a copy."""
        return self.get_parameters()

    def set_param_vector(self, vector: Tensor) -> None:
        """Make it the model."""
        self.set_parameters(vector)


class P2PByzantineMixin:
    """For a node with an `attack`: what peer-to-peer training asks of it."""

    attack: Any

    def p2p_broadcast_vector(
        self, *, neighbor_vectors: Sequence[Tensor] | None = None, like: Tensor | None = None
    ) -> Tensor:
        """(d,): what it sends to who hears these vectors, in the dtype and on the device of `like`."""
        lie: Tensor = self.attack.apply(honest_grads=None if neighbor_vectors is None else list(neighbor_vectors))
        return lie if like is None else lie.to(like)


class _StartedActor(NodeActor):
    @classmethod
    async def spawn(
        cls,
        node_class: Any,
        *positional: Any,
        backend: str | Backend = "process",
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> Self:
        """As `NodeActor.spawn`; a backend that is an object is started here, and ends with the node."""
        if not isinstance(backend, Backend):
            return await super().spawn(node_class, *positional, backend=backend, args=args, kwargs=kwargs, **named)
        await backend.start(getattr(node_class, "__name__", "node"))
        made = await super().spawn(node_class, *positional, backend=backend, args=args, kwargs=kwargs, **named)
        made._owns = True
        return made


class HonestNodeActor(_StartedActor):
    """An honest node on a worker."""


class ByzantineNodeActor(_StartedActor):
    """A Byzantine node on a worker."""
