"""One participant of a federation, as its owner sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from byzflow.actors.ref import ActorRef
from byzflow.federation.virtual_node import VirtualNode
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
