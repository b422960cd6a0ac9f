"""What one peer costs: the bytes of it that wait here, and the standing that it has earned."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from byzflow.errors import WireError, legible

if TYPE_CHECKING:
    from byzflow.actors.socket_link import SocketLink

BOUND = 100.0  # no score is farther from 0: good conduct buys no more than ten faults
FAULT, SLOW = (
    10.0,
    5.0,
)  # points that one frame that was refused costs, and one link that died of silence or within a frame


class Budget:
    """Bytes of arrays that one peer may have here on their way, over all its links; who finds no room waits in order.

    One for each peer, never one for all: else a peer that fills it would keep the honest ones waiting.
    """

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def take(self, size: int, ready: Callable[[], None]) -> bool:
        """If there is room now; otherwise `ready` is called once the room was taken.

        Raises WireError for a size that can never have room.
        """
        if size > self.total:
            raise WireError(f"{size} bytes of arrays in one frame; a peer may have {self.total} on their way")
        if size and (self._waiting or self.used + size > self.total):
            self._waiting.append((size, ready))
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Back, once the frame was taken by whom it is for, or its link ended."""
        self.used -= size
        while self._waiting and self.used + self._waiting[0][0] <= self.total:
            size, ready = self._waiting.popleft()
            self.used += size
            ready()

    def leave(self, ready: Callable[[], None]) -> None:
        """Wait no longer."""
        self._waiting = deque(each for each in self._waiting if each[1] != ready)
        self.give(0)


@dataclass
class Peer:
    """One peer: its links, its budget, its score."""

    budget: Budget
    links: list[SocketLink] = field(default_factory=list)
    past: float = 0.0  # of links that have ended

    @property
    def score(self) -> float:
        """Between -100 and 100: good frames raise it, faults and dead links lower it. Decides only who stays linked."""
        return _bounded(self.past + sum(link.stats.frames_in for link in self.links))

    def left(self, link: SocketLink) -> None:
        """A link of it has ended."""
        faults = sum(link.stats.refused.values())
        self.links.remove(link)
        cost = SLOW if link.slow else FAULT * faults
        self.past = _bounded(_bounded(self.past + link.stats.frames_in) - cost)


class Accounts:
    """What each peer has cost: its links, its budget and score, and what was refused of it."""

    def __init__(self, budget: int, forget: bool) -> None:
        """`budget` is in bytes for each; `forget` those without a link: an address is nobody to remember."""
        self.budget, self._forget = budget, forget
        self.refused: dict[str, dict[str, int]] = {}  # peer -> reason -> count
        self._peers: dict[str, Peer] = {}

    @property
    def links(self) -> dict[str, list[SocketLink]]:
        """Open links by peer, dialled or not."""
        return {name: list(peer.links) for name, peer in self._peers.items() if peer.links}

    def score(self, peer: str) -> float:
        """Of -100 to 100: good frames raise it, refused ones and dead links lower it; 0 for who is not known."""
        return self._peers[peer].score if peer in self._peers else 0.0

    def count(self, peer: str, reason: str) -> None:
        """Remember a refusal, of at most a thousand peers and twenty reasons each."""
        reasons = self.refused.setdefault(peer if peer in self.refused or len(self.refused) < 1000 else "others", {})
        reason = legible(reason, 100)
        reason = reason if reason in reasons or len(reasons) < 20 else "other reasons"
        reasons[reason] = reasons.get(reason, 0) + 1

    def _met(self, link: SocketLink) -> Budget:
        peer = self._peers.setdefault(link.peer, Peer(Budget(self.budget)))
        peer.links.append(link)
        return peer.budget

    def _left(self, link: SocketLink) -> None:
        if not link.peer:
            self.count("unknown", "certificate not trusted")
        elif (peer := self._peers.get(link.peer)) is not None:
            peer.left(link)
            if self._forget and not peer.links:
                del self._peers[link.peer]


def _bounded(score: float) -> float:
    return max(-BOUND, min(BOUND, score))
