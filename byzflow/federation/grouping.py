"""The clusters of a federation as the rounds go by: who speaks for whom, and who is with whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from byzflow.gossip.cluster import Clusters, Groups
from byzflow.gossip.effects import Heard, NodeId
from byzflow.gossip.similarity import cosine_distances, groups_of, medoid


class Grouping:
    """Heads are chosen anew before each mixing, groups every `plan.every` rounds, both from what the nodes sent."""

    def __init__(self, plan: Clusters, nodes: Sequence[NodeId], speakers: Sequence[NodeId], f: int) -> None:
        """`speakers`: who may be a head. Raises SpecError for groups that do not fit."""
        self.plan, self._f = plan, f
        self._speakers = frozenset(speakers)
        members = plan.initial(nodes)
        self.groups = Groups(members, tuple(map(self._first, members)), plan.period)
        self._sent: dict[NodeId, Any] = {}

    def note(self, heard: Heard) -> None:
        """What was heard within clusters."""
        self._sent |= heard.values

    def after(self, round: int, nodes: Sequence[NodeId]) -> bool:
        """What becomes of it after a round among these nodes; true if anything changed."""
        before, there = self.groups, set(nodes)
        sent = {node: self._sent[node] for node in nodes if node in self._sent}
        regroup = self.plan.every > 0 and (round + 1) % self.plan.every == 0
        kept = [group for each in before.members if (group := [node for node in each if node in there])]
        members = self._placed(kept, nodes)
        if regroup or before.mix(round + 1):
            known, distance = cosine_distances(sent)
            place = {node: k for k, node in enumerate(known)}
            if regroup and len(known) > 1:
                found = groups_of(distance, self.plan.count or len(before.members), 2 * self._f + 1)
                members = self._placed([[known[k] for k in group] for group in found], nodes)
            heads = tuple(self._head(group, place, distance) for group in members)
        else:
            heads = tuple(
                next((head for head in before.heads if head in group), self._first(group)) for group in members
            )
        self._sent = {}
        self.groups = Groups(members, heads, self.plan.period)
        return self.groups != before

    def _placed(self, found: list[list[NodeId]], nodes: Sequence[NodeId]) -> tuple[tuple[NodeId, ...], ...]:
        """Groups in the order of the nodes; who sent nothing that counts goes where fewest are."""
        for node in nodes:
            if not any(node in group for group in found):
                min(found, key=len).append(node)
        order = {node: place for place, node in enumerate(nodes)}
        return tuple(
            sorted((tuple(sorted(group, key=order.__getitem__)) for group in found), key=lambda g: order[g[0]])
        )

    def _head(self, group: Sequence[NodeId], place: dict[NodeId, int], distance: Any) -> NodeId:
        fit = [place[node] for node in group if node in place and node in self._speakers]
        return list(place)[medoid(distance, fit)] if fit else self._first(group)

    def _first(self, group: Sequence[NodeId]) -> NodeId:
        return next((node for node in group if node in self._speakers), group[0])
