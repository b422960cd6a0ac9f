"""The door of a node program to the outside: what it knows of the run, and the effects it can ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from byzflow.errors import FederationError
from byzflow.gossip.effects import (
    Adopt,
    Aggregate,
    Apply,
    Heard,
    NodeId,
    Now,
    Recv,
    SamplePeers,
    Send,
    Sleep,
    Train,
    Turn,
)
from byzflow.gossip.topology import Topology
from byzflow.gossip.varying import Varying


@dataclass(eq=False)
class Run:
    """What all nodes of a run know alike; its owner may change it between rounds.

    `graph()` is the current topology; `contributors` send vectors, the others only receive. Of the contributors a
    share `fraction` is sampled for each round, at least one. `quorum` is how many vectors a node needs for a round,
    by default all but `f`; `deadline` (seconds) bounds how long it waits for more, None for as long as they live.
    A node's own vector stands for silent neighbours as far as its rule needs more rows, so that f stays whole. A centre
    has none: who is silent counts as Byzantine there as far as the rule needs it. Where f honest workers may be late
    besides f that lie, take n and f for which the rule is valid for n - f rows too, such as n >= 3f + 1 for a trimmed
    mean.
    """

    graph: Callable[[], Topology | Varying]
    contributors: frozenset[NodeId]
    f: int = 0
    centre: NodeId | None = None
    fraction: float = 1.0
    quorum: int | None = None
    deadline: float | None = None
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    """Of programs that have more of them."""

    def at(self, round: int) -> Topology:
        """The graph of a round."""
        graph = self.graph()
        return graph.at(round) if isinstance(graph, Varying) else graph

    def sampled(self, round: int) -> frozenset[NodeId]:
        """Contributors whose vectors count in this round; the same for every node that asks."""
        return _sampled(self.contributors, self.fraction, f"{self.seed}/sampled/{round}")


@lru_cache(maxsize=64)
def _sampled(contributors: frozenset[NodeId], fraction: float, seed: str) -> frozenset[NodeId]:
    if fraction >= 1:
        return contributors
    order = sorted(contributors, key=str)
    return frozenset(Random(seed).sample(order, max(1, round(fraction * len(order)))))


@dataclass(frozen=True, eq=False)
class Door:
    """What a program is given. Everything it can do is here; everything it awaits is an effect."""

    id: NodeId
    run: Run

    @property
    def contributes(self) -> bool:
        """If this node sends vectors; one that only evaluates does not."""
        return self.id in self.run.contributors

    @property
    def centre(self) -> NodeId:
        """The centre of a star. Raises FederationError where there is none."""
        if self.run.centre is None:
            raise FederationError("this federation has no centre")
        return self.run.centre

    def sampled(self, t: int) -> bool:
        """If this node's vector counts in round t."""
        return self.id in self.run.sampled(t)

    def listeners(self, t: int) -> tuple[NodeId, ...]:
        """To whom this node may send in round t."""
        return self.run.at(t).neighbours(self.id)

    def speakers(self, t: int) -> tuple[NodeId, ...]:
        """Whose vectors this node waits for in round t, in the order of the nodes."""
        sampled = self.run.sampled(t)
        return tuple(node for node in self.run.at(t).in_neighbours(self.id) if node in sampled)

    def quorum(self, senders: Sequence[NodeId]) -> int:
        """How many of the senders a round needs."""
        wanted = len(senders) - self.run.f if self.run.quorum is None else self.run.quorum
        return max(0, min(wanted, len(senders)))

    def turn(self) -> Turn:
        """See `effects.Turn`."""
        return Turn()

    def train(self, t: int) -> Train:
        """See `effects.Train`."""
        return Train(t)

    def apply(self, step: Any, t: int) -> Apply:
        """See `effects.Apply`."""
        return Apply(step, t)

    def adopt(self, model: Any, t: int) -> Adopt:
        """See `effects.Adopt`."""
        return Adopt(model, t)

    def send(self, to: Sequence[NodeId], type: str, value: Any, t: int) -> Send:
        """See `effects.Send`."""
        return Send(tuple(to), type, value, t)

    def recv(self, type: str, t: int, senders: Sequence[NodeId], quorum: int | None = None) -> Recv:
        """See `effects.Recv`; the quorum and the deadline are the run's."""
        needed = self.quorum(senders) if quorum is None else quorum
        return Recv(type, t, tuple(senders), needed, self.run.deadline)

    def aggregate(self, t: int, heard: Heard, own: Any = None, stage: str = "") -> Aggregate:
        """See `effects.Aggregate`."""
        return Aggregate(t, heard, own, stage)

    def sample_peers(self, t: int, count: int) -> SamplePeers:
        """See `effects.SamplePeers`."""
        return SamplePeers(t, count)

    def sleep(self, seconds: float) -> Sleep:
        """See `effects.Sleep`."""
        return Sleep(seconds)

    def now(self) -> Now:
        """See `effects.Now`."""
        return Now()
