"""A message between two nodes, and what its receiver checks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from byzflow.gossip.effects import NodeId


@dataclass(frozen=True)
class Envelope:
    """What travels. `sender` is who the connection proves it to be, never what the message says.

    `round` is None for messages outside of rounds, which are taken in the order in which they came.
    """

    type: str
    sender: NodeId
    value: Any
    round: int | None = None
    version: int = 0
    """Of the graph by which it was sent."""
