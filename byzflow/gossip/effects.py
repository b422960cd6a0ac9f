"""What a node program may ask for. An effect is data: awaiting it hands it to whoever runs the program.

A program is a coroutine over these effects alone, so it never touches sockets, threads or clocks, and runs unchanged
wherever something performs them: in one process, on workers, or with its peers on other hosts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

R = TypeVar("R")
NodeId = str | int


@dataclass(frozen=True, eq=False)
class Effect(Generic[R]):
    """Something that only the runtime can do, and what comes of it."""

    def __await__(self) -> Generator[Effect[R], R, R]:
        return (yield self)


@dataclass(frozen=True, eq=False)
class Turn(Effect[int | None]):
    """The number of the next round, from 0, once it may begin; None when there is none any more."""


@dataclass(frozen=True, eq=False)
class Train(Effect[Any]):
    """A local step: what this node has to say in the round, a flat vector; None from one that does not train."""

    round: int


@dataclass(frozen=True, eq=False)
class Apply(Effect[None]):
    """Take the round's step, a flat vector that all nodes are given, such as an aggregated gradient."""

    step: Any
    round: int


@dataclass(frozen=True, eq=False)
class Adopt(Effect[None]):
    """Go on from this model, a flat vector."""

    model: Any
    round: int


@dataclass(frozen=True, eq=False)
class Send(Effect[None]):
    """A message to neighbours. Raises NotANeighbour for one who is none in the round's graph."""

    to: Sequence[NodeId]
    type: str
    value: Any
    round: int


@dataclass(frozen=True, eq=False)
class Recv(Effect["Heard"]):
    """One message of the type and round from each of the senders.

    Ends when all that are alive have spoken, or at the deadline (seconds from now) with `quorum` of them; every other
    message stays in its place. Raises QuorumLost if the quorum does not come within the runtime's patience.
    """

    type: str
    round: int
    senders: Sequence[NodeId]
    quorum: int
    deadline: float | None = None


@dataclass(frozen=True)
class Heard:
    """What a Recv brought: values by sender in the order that was asked for, and who is missing."""

    values: dict[NodeId, Any]
    missing: tuple[NodeId, ...] = ()
    ages: dict[NodeId, float] = field(default_factory=dict)
    """Seconds that each value took to come."""
    silent: tuple[NodeId, ...] = ()
    """Of the missing, those who are late: they did not even say that they have nothing to say."""


@dataclass(frozen=True, eq=False)
class Aggregate(Effect[Any]):
    """The rule's result on what was heard and, where there is one, the node's own vector as the first row.

    Writes the ledger and the audit. `weights`, by node, are mixing weights for a rule that takes them.
    """

    round: int
    heard: Heard
    own: Any = None
    stage: str = ""
    """Names the rule, where a program has more than one."""


@dataclass(frozen=True, eq=False)
class SamplePeers(Effect[tuple[NodeId, ...]]):
    """`count` others, drawn for this round from the node's own stream."""

    round: int
    count: int


@dataclass(frozen=True, eq=False)
class Sleep(Effect[None]):
    """Let time pass; never a means to wait for others."""

    seconds: float


@dataclass(frozen=True, eq=False)
class Now(Effect[float]):
    """Seconds on the runtime's clock."""
