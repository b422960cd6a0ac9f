"""Who of a run over a network is there, who is not, since when and why, and what was refused of whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from byzflow.federation.remote import Say
from byzflow.gossip.deadline import Deadline
from byzflow.gossip.effects import NodeId
from byzflow.gossip.tcp_network import TcpNetwork

NEVER = "never came"


class Presence:
    """What one node sees of the others; `changed` is set whenever there is something new to see."""

    def __init__(self, others: Iterable[NodeId], say: Say) -> None:
        self.changed = asyncio.Event()
        self._say = say
        self._since: dict[NodeId, tuple[str, float]] = {node: (NEVER, time.monotonic()) for node in others}
        self._counted: dict[NodeId, dict[str, int]] = {}

    def came(self, node: NodeId) -> None:
        """It is linked."""
        self._since[node] = ("", time.monotonic())
        self._say(f"{node} is connected")
        self.changed.set()

    def went(self, node: NodeId, why: str) -> None:
        """It is linked no more."""
        self._since[node] = (why, time.monotonic())
        self._say(f"{node} is gone: {why}")
        self.changed.set()

    async def until(self, true: Callable[[], Any], seconds: float | None) -> bool:
        """Wait for what others that come, go or tell make true; False if it is not in this time."""
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    def refusals(self, network: TcpNetwork, keep: bool = False) -> dict[NodeId, dict[str, int]]:
        """By node and reason, what was refused since it was asked with `keep`."""
        new = {}
        for node, reasons in network.mailbox(network.me).refused.items():
            before = self._counted.get(node, {})
            if more := {why: n - before.get(why, 0) for why, n in reasons.items() if n > before.get(why, 0)}:
                new[node] = more
        if keep:
            self._counted = {node: dict(each) for node, each in network.mailbox(network.me).refused.items()}
        return new

    def absent(self, missing: Iterable[NodeId], network: TcpNetwork, deadline: Deadline) -> dict[NodeId, str]:
        """Why each of them is missing, and for how long."""
        told, refused = {}, self.refusals(network)
        for node in missing:
            why, since = self._since[node]
            age = f"{time.monotonic() - since:.0f} s"
            if node in network.lines and node in refused:
                told[node] = f"refused: {', '.join(refused[node])}"
            elif node in network.lines:
                told[node] = f"connected, but silent for {deadline.seconds():.1f} s"
            else:
                told[node] = f"{why}, {age}" if why == NEVER else f"{why or 'gone'}, {age} ago"
        return told
