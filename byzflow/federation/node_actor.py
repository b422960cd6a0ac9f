"""Nodes on workers: the same classes, spawned on a thread, in a process, or on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from byzflow.actors import ActorRef, Backend, spawn


class NodeActor(ActorRef):
    """A node that lives on a worker of its own; `await actor.method(...)` runs there.

        node = await HonestNodeActor.spawn(MyNode, backend="process", kwargs={"seed": 1})

    What is left of the node's life, its worker too, ends with `aclose`.
    """

    @classmethod
    async def spawn(
        cls,
        node_class: Any,
        *positional: Any,
        backend: str | Backend = "thread",
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> Self:
        """node_class(*args, **kwargs) on a worker; arguments may also be given as to the class itself.

        `backend` is "thread", "process", a URL such as "tcp://host:7000", or a started worker, which the node then
        shares with others. What is spawned on another machine is named there, see `byzflow.actors.tcp`.
        """
        made = await spawn(node_class, *positional, *args, backend=backend, **{**(kwargs or {}), **named})
        return cls(made._backend, made._number, made._kind, made._methods, made._owns)


class HonestNodeActor(NodeActor):
    """An honest node on a worker."""


class ByzantineNodeActor(NodeActor):
    """A Byzantine node on a worker."""
