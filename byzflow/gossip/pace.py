"""Which rounds may run: nodes ask for their next turn, and the run's owner lets them have it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from byzflow.gossip.effects import NodeId


class Pace:
    """Belongs to one event loop. Nodes take their turns each for itself; none waits for another here."""

    def __init__(self, allowed: int = 0, skips: bool = False) -> None:
        """Rounds 0 to `allowed` - 1 may begin at once. With `skips` a late node leaves out rounds that are over."""
        self.allowed, self.skips = allowed, skips
        self.at: dict[NodeId, int] = {}  # the round that each node is in, or waits for
        self.over = 0  # rounds that the owner waits for no more
        self._jumped: set[NodeId] = set()
        self._stopped = False
        self._changed = asyncio.Condition()

    def join(self, node: NodeId) -> None:
        """From now on the owner waits for this node, even before its first turn."""
        self.at.setdefault(node, -1)

    async def turn(self, node: NodeId) -> int | None:
        """The node's next round, once it may begin; None when there is none. What came before is then finished."""
        async with self._changed:
            self.at[node] = round = self.at.get(node, -1) + 1
            if self.skips and round < self.over and node not in self._jumped:
                self.at[node] = round = self.over
            self._jumped.discard(node)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._stopped or self.allowed > self.at[node])
            return None if self._stopped else self.at.get(node, round)

    async def jump(self, node: NodeId, round: int) -> None:
        """The node's next turn is this round, even if it is over."""
        async with self._changed:
            self._jumped.add(node)
            self.at[node] = round - 1

    async def leave(self, nodes: Iterable[NodeId]) -> None:
        """Nobody waits for these any more."""
        async with self._changed:
            for node in nodes:
                self.at.pop(node, None)
            self._changed.notify_all()

    async def allow(self, rounds: int) -> None:
        """Let rounds up to `rounds` - 1 begin."""
        async with self._changed:
            self.allowed = max(self.allowed, rounds)
            self._changed.notify_all()

    async def stop(self) -> None:
        """No more turns; rounds that run come to their end."""
        async with self._changed:
            self._stopped = True
            self._changed.notify_all()

    async def finished(self, round: int, waiting: Collection[NodeId]) -> None:
        """Until every node of `waiting` that has not left is past the round; `waiting` may shrink meanwhile."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._stopped or all(self.at.get(node, round + 1) > round for node in waiting)
            )
            self.over = max(self.over, round + 1)
