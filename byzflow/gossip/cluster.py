"""Clusters: nodes that mix with those of their own cluster each round, and with the other clusters now and then.

Federation(nodes, Clusters(groups=[["a", "b", "c"], ["d", "e", "f"]], period=5), "trimmed_mean", f=1)
Federation(nodes, Clusters(count=3, every=10), ...)         # by the similarity of what they send
Federation(nodes, "cluster:3", ...)                         # count=3, never regrouped
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from byzflow.errors import SpecError
from byzflow.gossip.defence import fits
from byzflow.gossip.door import Door
from byzflow.gossip.effects import Heard, NodeId
from byzflow.gossip.topology import Topology

SETTING = "clusters"
BETWEEN = "between"
"""The stage of an aggregation over heads, which has a rule of its own."""


@dataclass(frozen=True)
class Clusters:
    """How nodes are grouped.

    Parameters
    ----------
    groups : the clusters, each the ids of its nodes; if not given, `count` of them in the order of the nodes.
    count : how many, about the square root of half the nodes by default.
    period : rounds between two mixings of the clusters' heads.
    every : rounds between two groupings by the similarity of what the nodes send; 0 keeps the groups.
    between : the rule over the heads' models; a spec without an open f.

    A head is the node nearest to most of its cluster, chosen before each mixing, so that who sends what nobody else
    does is not one. Members take their head's mixed model as it is: who is like the others and lies as head only,
    misleads its cluster until the next round's rule.
    """

    groups: Sequence[Sequence[NodeId]] | None = None
    count: int | None = None
    period: int = 5
    every: int = 0
    between: str = "median"

    def __post_init__(self) -> None:
        if self.period < 1 or self.every < 0 or (self.count is not None and self.count < 1):
            raise SpecError(
                f"clusters need period >= 1, every >= 0, count >= 1, got {self.period}, {self.every}, {self.count}"
            )

    @classmethod
    def read(cls, spec: str) -> Clusters | None:
        """Of "cluster" and "cluster:3"; None for other words."""
        name, colon, count = spec.partition(":")
        if name.strip() != "cluster":
            return None
        if colon and not count.strip().isdecimal():
            raise SpecError(f"write cluster or cluster:3, the number of clusters, got {spec[:60]!r}")
        return cls(count=int(count) if colon else None)

    def initial(self, nodes: Sequence[NodeId]) -> tuple[tuple[NodeId, ...], ...]:
        """The groups to begin with. Raises SpecError for unknown, missing and repeated nodes, and for empty groups."""
        if self.groups is None:
            count = max(1, round((len(nodes) / 2) ** 0.5)) if self.count is None else self.count
            if count > len(nodes):
                raise SpecError(f"{count} clusters of {len(nodes)} nodes: take at most one a node")
            bounds = [round(place * len(nodes) / count) for place in range(count + 1)]
            return tuple(tuple(nodes[a:b]) for a, b in pairwise(bounds))
        given = [node for group in self.groups for node in group]
        if sorted(map(str, given)) != sorted(map(str, nodes)) or not all(self.groups):
            odd = sorted({str(node) for node in given} ^ {str(node) for node in nodes})
            raise SpecError(
                f"groups name each node once, and none is empty; unknown or left out: {', '.join(odd) or '-'}"
            )
        return tuple(map(tuple, self.groups))


@dataclass(frozen=True)
class Groups:
    """Who is with whom, and who speaks for them."""

    members: tuple[tuple[NodeId, ...], ...]
    heads: tuple[NodeId, ...]
    """One a cluster, in the same order."""
    period: int

    def mates(self, node: NodeId) -> frozenset[NodeId]:
        """The others of a node's cluster."""
        return frozenset(other for group in self.members if node in group for other in group if other != node)

    def head(self, node: NodeId) -> NodeId | None:
        """Who speaks for a node; nobody for one that came in this round."""
        return next((head for group, head in zip(self.members, self.heads, strict=True) if node in group), None)

    def mix(self, t: int) -> bool:
        """If the heads mix in round t."""
        return len(self.heads) > 1 and (t + 1) % self.period == 0

    def graph(self, nodes: Sequence[NodeId], version: int = 0) -> Topology:
        """Each with each in a cluster, and each head with each."""
        edges = {pair for group in self.members for pair in combinations(group, 2)} | set(combinations(self.heads, 2))
        place: Mapping[NodeId, int] = {node: k for k, node in enumerate(nodes)}
        ordered = {(a, b) if place[a] < place[b] else (b, a) for a, b in edges}
        return Topology(tuple(nodes), tuple(ordered), version=version)


async def cluster(door: Door) -> None:
    """A half step and an exchange within the cluster; heads then mix now and then, and hand on what comes of it."""
    while (t := await door.turn()) is not None:
        groups: Groups = door.run.settings[SETTING]
        mates = groups.mates(door.id)
        listeners = [node for node in door.listeners(t) if node in mates]
        own = await door.train(t) if door.contributes else None
        if door.contributes:
            await door.send(listeners, "half", own, t)
        heard = await door.recv("half", t, [node for node in door.speakers(t) if node in mates])
        model = await door.aggregate(t, heard, own)
        if groups.mix(t):
            around = door.run.at(t).in_neighbours(door.id)
            if door.id in groups.heads:
                others = [node for node in groups.heads if node in around]
                await door.send(others, "head", model, t)
                told: Heard = await door.recv("head", t, others, quorum=0)
                model = await door.aggregate(t, told, model, BETWEEN)
                await door.send(listeners, "mixed", model, t)
            elif (head := groups.head(door.id)) in around:
                told = await door.recv("mixed", t, [head], quorum=0)
                handed = told.values.get(head)
                model = handed if fits(handed, model) else model
        await door.adopt(model, t)
