"""What an omniscient attacker sees: the honest vectors of a round, where all nodes live in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from byzflow.gossip.effects import NodeId

KEPT = 3  # rounds


class Witness:
    """Belongs to one event loop. Honest nodes show what they send; attackers wait for it, and change nothing."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], dict[NodeId, Any]] = {}
        self._gone: set[NodeId] = set()
        self._changed = asyncio.Condition()

    async def show(self, type: str, round: int, sender: NodeId, value: Any) -> None:
        """An honest node sends this; None if it has nothing to say."""
        async with self._changed:
            self._seen.setdefault((type, round), {})[sender] = value
            for key in [key for key in self._seen if key[1] < round - KEPT]:
                del self._seen[key]
            self._changed.notify_all()

    async def gone(self, node: NodeId) -> None:
        """This one will show nothing more."""
        async with self._changed:
            self._gone.add(node)
            self._changed.notify_all()

    async def back(self, node: NodeId) -> None:
        """This one is there again."""
        async with self._changed:
            self._gone.discard(node)

    async def honest(self, type: str, round: int, senders: Sequence[NodeId], patience: float | None) -> list[Any]:
        """The vectors of these nodes in their order, once all that are there have shown theirs, or patience ends."""
        seen = self._seen.setdefault((type, round), {})

        def complete() -> bool:
            return all(sender in seen or sender in self._gone for sender in senders)

        try:
            async with asyncio.timeout(patience), self._changed:
                await self._changed.wait_for(complete)
        except TimeoutError:
            pass
        return [seen[sender] for sender in senders if seen.get(sender) is not None]
