"""What the nodes of a federation tell in a round, and the report that is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

from byzflow.federation.grouping import Grouping
from byzflow.federation.member import Member
from byzflow.federation.report import History, RoundReport
from byzflow.federation.supervision import Supervisor
from byzflow.gossip.effects import NodeId
from byzflow.gossip.pace import Pace
from byzflow.gossip.performer import Told, can


class Observer:
    """Hears the nodes, knows who is late, and asks them for metrics and digests when a round is over.

    `every`: rounds between evaluations, 0 for none. `one_model`: all are to have the same, so digests are compared.
    """

    def __init__(
        self,
        members: Mapping[NodeId, Member],
        supervisor: Supervisor,
        pace: Pace,
        history: History,
        grouping: Grouping | None,
        every: int,
        one_model: bool,
    ) -> None:
        self.members, self.supervisor, self.pace, self.history = members, supervisor, pace, history
        self.grouping, self.every, self.one_model = grouping, every, one_model
        self.told: dict[int, list[Told]] = {}
        """What was told of rounds that have no report yet."""
        self._late: dict[int, set[NodeId]] = {}

    def hear(self, told: Told) -> None:
        """What happened at a node. Who was late for a round is not waited for at its end."""
        if told.round < len(self.history):
            if not told.error:
                return
            told = replace(told, round=len(self.history))  # a late node's errors count where they can be seen
        self.told.setdefault(told.round, []).append(told)
        if told.heard is not None and self.grouping is not None and not told.stage:
            self.grouping.note(told.heard)
        if told.heard is not None and told.round in self._late:
            self._late[told.round] |= set(told.heard.silent)

    def punctual(self, number: int, nodes: Collection[NodeId]) -> Collection[NodeId]:
        """Those of the nodes whom the end of the round waits for, as it turns out while it is waited."""
        return _Punctual(nodes, self._late.setdefault(number, set()))

    def late(self, number: int) -> set[NodeId]:
        """Who was late for a round that is over; told once."""
        return self._late.pop(number, set())

    async def report(self, number: int, seconds: float) -> RoundReport:
        """The report of a round that is over."""
        told = [each for round in sorted(self.told) if round <= number for each in self.told.pop(round)]
        liars = {member.id for member in self.members.values() if member.byzantine}
        verdicts = [each.verdict for each in told if each.verdict is not None and each.node not in liars]
        shares: dict[NodeId, list[float]] = {}
        for verdict in verdicts:
            for sender, weight in verdict.weights.items():
                shares.setdefault(sender, []).append(weight)
        alive = [member for member in self.members.values() if member.here]
        there = [member for member in alive if self.pace.at.get(member.id, number + 1) > number]
        due = self.every and (number + 1) % self.every == 0
        metrics = await self._evaluate(there, number) if due else {}
        digests = await self.digests(number, there) if self.one_model else {}
        events, self.supervisor.events = self.supervisor.events, {}
        return RoundReport(
            number,
            seconds,
            tuple(member.id for member in alive),
            metrics,
            {sender: fmean(each) for sender, each in shares.items()},
            {sender: why for verdict in verdicts for sender, why in verdict.rejected.items()},
            tuple({sender: None for verdict in verdicts for sender in verdict.missing}),
            {each.node: each.error for each in told if each.error},
            digests,
            events,
            next((verdict.problem for verdict in verdicts if verdict.problem), ""),
        )

    async def digests(self, number: int, among: Sequence[Member] | None = None) -> dict[str, tuple[NodeId, ...]]:
        """Which honest nodes have which model after this round."""
        members = self.members.values() if among is None else among
        holders = [m for m in members if m.here and not m.byzantine and can(m.node, "digest")]
        asked = (self.supervisor.ask(member, "digest", number) for member in holders)
        found: dict[str, tuple[NodeId, ...]] = {}
        for member, digest in zip(holders, await asyncio.gather(*asked), strict=True):
            if isinstance(digest, str) and digest:
                found[digest] = (*found.get(digest, ()), member.id)
        return found

    async def _evaluate(self, alive: Sequence[Member], number: int) -> dict[str, float]:
        """The median of each metric over the honest nodes that evaluate."""
        judges = [m for m in alive if not m.byzantine and {"eval", "test"} & set(m.role.split("-"))]
        asked = (self.supervisor.ask(m, "evaluate", number) for m in judges if can(m.node, "evaluate"))
        told: dict[str, list[float]] = {}
        for answer in await asyncio.gather(*asked):
            for name, value in answer.items() if isinstance(answer, Mapping) else ():
                if isinstance(name, str) and (metric := _number(value)) is not None:
                    told.setdefault(name, []).append(metric)
        return {name: median(values) for name, values in told.items()}


def _number(value: Any) -> float | None:
    """A metric that a node tells, a tensor of one number included; None if it is no number, for it is a claim."""
    try:
        return None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


class _Punctual(Collection[NodeId]):
    """All but the late, of whom there may be more while it is waited."""

    def __init__(self, nodes: Collection[NodeId], late: Collection[NodeId]) -> None:
        self._nodes, self._late = nodes, late

    def __iter__(self) -> Iterator[NodeId]:
        return (node for node in self._nodes if node not in self._late)

    def __contains__(self, node: object) -> bool:
        return node in self._nodes and node not in self._late

    def __len__(self) -> int:
        return sum(1 for _ in self)
