"""One participant of a federation, as its owner sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from byzflow.actors.ref import ActorRef
from byzflow.errors import FederationError
from byzflow.federation.nodes import ByzantineNode
from byzflow.federation.virtual_node import VirtualNode
from byzflow.federation.workers import Workers
from byzflow.gossip.effects import NodeId
from byzflow.gossip.performer import Performer


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(eq=False)
class Member:
    """One participant. `node` is an object, an `ActorRef`, or what a `VirtualNode` builds; `role` as in Red."""

    id: NodeId
    node: Any
    role: str = "train-eval"
    byzantine: bool = False
    restarts: int = 0
    lost: str = ""
    """Why it is no longer there; empty while it is."""
    virtual: VirtualNode | None = None
    """What it is made from, again if need be."""
    away: bool = False
    """If it waits for the end of the round to come in."""
    died: str = ""
    """Why its worker counts as dead, until another one is in its place."""
    ready: asyncio.Event = field(default_factory=_set)
    """Set unless its worker is dead and another one is awaited."""
    program: asyncio.Task[Any] | None = None
    performer: Performer | None = None

    @classmethod
    def of(cls, id: NodeId, node: Any, role: str = "", byzantine: bool = False, workers: Workers | None = None) -> Self:
        """The member that a node becomes. Its class, too, says if it is Byzantine.

        A virtual one gets the role that is said here, else its own, and lives on these workers unless it names a place.
        """
        virtual = node if isinstance(node, VirtualNode) else None
        kind = virtual.template if virtual is not None else type(node)
        if virtual is not None and workers is not None:
            virtual.placed(workers)
        lies = byzantine or (isinstance(kind, type) and issubclass(kind, ByzantineNode))
        return cls(id, node, role or ("train-eval" if virtual is None else virtual.role), lies, virtual=virtual)

    @property
    def here(self) -> bool:
        """If it takes part."""
        return not (self.lost or self.away)

    @property
    def mortal(self) -> bool:
        """If it lives on a worker, which can die."""
        return isinstance(self.node, ActorRef)

    def trains(self) -> bool:
        """If it sends vectors."""
        return "train" in self.role.split("-")


def numbered(nodes: Sequence[Any]) -> dict[NodeId, Any]:
    """Nodes by id: their place, or what a virtual one is called. FederationError for two of one id."""
    found: dict[NodeId, Any] = {}
    for place, node in enumerate(nodes):
        id = node.id if isinstance(node, VirtualNode) else place
        if id in found:
            raise FederationError(f"two nodes have the id {id!r}: give each its own")
        found[id] = node
    return found
