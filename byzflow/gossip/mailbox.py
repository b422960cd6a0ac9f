"""A node's mailbox: one message per sender, type and round, bounded whatever is sent, and refusals counted."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from byzflow.errors import MailboxFull, MessageTimeout, QuorumLost, Stopped
from byzflow.gossip.effects import Heard, NodeId
from byzflow.gossip.envelope import Envelope
from byzflow.graph.messages import nbytes

AHEAD = 2  # rounds that a sender may be ahead
LOOSE = 64  # messages outside of rounds that may wait, of one sender
KINDS = 32  # types of one sender that are told apart


class Mailbox:
    """Belongs to one event loop. A flood costs its sender's own few slots and nobody else's.

    `may_send(envelope)` says whether its sender is a neighbour; `ahead` bounds how many rounds a message may
    be before the node's own round; `most`, if given, how many bytes of one sender's messages outside of rounds may wait
    before no more of them are taken in.
    """

    def __init__(
        self,
        may_send: Callable[[Envelope], bool] = lambda envelope: True,
        ahead: int = AHEAD,
        most: int | None = None,
    ) -> None:
        self.refused: dict[NodeId, Counter[str]] = {}
        self.round = 0
        self._may_send, self._ahead, self._most = may_send, ahead, most
        self._rounds: dict[tuple[str, int], dict[NodeId, Envelope]] = {}
        self._loose: deque[Envelope] = deque()
        self._loose_of: Counter[NodeId] = Counter()
        self._bytes_of: Counter[NodeId] = Counter()
        self._down: set[NodeId] = set()
        self._lost: set[NodeId] = set()
        self._changed = asyncio.Event()
        self._stopped = False

    def put(self, envelope: Envelope) -> bool:
        """Keep it, or refuse it and count why; never raises, for the fault is the sender's. True if it was kept."""
        reason = self._fault(envelope)
        if reason is not None:
            self.refuse(envelope.sender, reason)
            return False
        if envelope.round is None:
            self._loose.append(envelope)
            self._loose_of[envelope.sender] += 1
            self._bytes_of[envelope.sender] += self._size(envelope)
        else:
            self._rounds.setdefault((envelope.type, envelope.round), {})[envelope.sender] = envelope
        self._wake()
        return True

    def near(self, round: int) -> bool:
        """If a message of this round may be kept now."""
        return self.round <= round <= self.round + self._ahead

    def refuse(self, sender: NodeId, reason: str) -> None:
        """Count a refusal of something that a sender sent."""
        self.refused.setdefault(sender, Counter())[reason] += 1

    def begin(self, round: int) -> None:
        """The node's own round: what is older is forgotten, and refused from now on."""
        self.round = round
        for key in [key for key in self._rounds if key[1] < round]:
            del self._rounds[key]

    def restart(self, round: int) -> None:
        """Go on from this round, earlier or later: all that came for rounds is forgotten."""
        self.round = round
        self._rounds.clear()

    def holds(self, type: str, round: int) -> bool:
        """If a message of this type and round waits here."""
        return bool(self._rounds.get((type, round)))

    def down(self, sender: NodeId) -> None:
        """Nobody needs to wait for this one."""
        self._down.add(sender)
        self._wake()

    def lose(self, sender: NodeId) -> None:
        """This one takes no part any more: nobody waits for it, and no quorum counts it."""
        self._lost.add(sender)
        self._wake()

    def up(self, sender: NodeId) -> None:
        """This one is there, again."""
        self._down.discard(sender)
        self._lost.discard(sender)
        self._wake()

    def stop(self) -> None:
        """End what waits, whatever it waits for."""
        self._stopped = True
        self._wake()

    async def collect(
        self,
        type: str,
        round: int,
        senders: Sequence[NodeId],
        quorum: int,
        deadline: float | None = None,
        patience: float | None = None,
    ) -> Heard:
        """See `Recv`. A value of None says that its sender has nothing to say in this round.

        With the quorum there it waits for the others until the deadline, and never longer than `patience`. Raises
        QuorumLost after `patience` seconds without the quorum, and Stopped.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        came: dict[NodeId, float] = {}
        while True:
            self._changed.clear()
            if self._stopped:
                raise Stopped("the run was stopped")
            kept = self._rounds.get((type, round), {})
            now = loop.time() - began
            for sender in kept:
                came.setdefault(sender, now)
            if lost := [sender for sender in senders if sender in self._lost and sender not in kept]:
                senders, quorum = [each for each in senders if each not in lost], quorum - len(lost)
            present = [sender for sender in senders if sender in kept and kept[sender].value is not None]
            awaited = [sender for sender in senders if sender not in kept and sender not in self._down]
            enough = len(present) >= quorum or all(sender in kept for sender in senders)
            ends = [end for end in (deadline if enough else None, patience) if end is not None]
            if enough and (not awaited or (ends and now >= min(ends))):
                taken = self._rounds.pop((type, round), {})
                return Heard(
                    {sender: taken[sender].value for sender in present},
                    tuple(sender for sender in senders if sender not in present),
                    {sender: came[sender] for sender in present},
                    tuple(awaited),
                )
            if patience is not None and now >= patience:
                raise QuorumLost(
                    f"{len(present)} of {len(senders)} sent {type!r} for round {round} within {patience:g} s, "
                    f"{quorum} are needed; missing: {', '.join(str(s) for s in senders if s not in present)}"
                )
            await self._wait(min(ends) - now if ends else None)

    async def take(
        self,
        type: str | None = None,
        timeout: float | None = None,
        fits: Callable[[Envelope], bool] = lambda envelope: True,
    ) -> Envelope:
        """The oldest message outside of rounds that fits, of this type if one is given. Raises MessageTimeout."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            self._changed.clear()
            if self._stopped:
                raise Stopped("the run was stopped")
            for place, envelope in enumerate(self._loose):
                if type in (None, envelope.type) and fits(envelope):
                    del self._loose[place]  # by place: values need not be comparable
                    self._loose_of[envelope.sender] -= 1
                    self._bytes_of[envelope.sender] -= self._size(envelope)
                    self._wake()  # there is room
                    return envelope
            left = None if end is None else end - loop.time()
            if left is not None and left <= 0:
                raise MessageTimeout(f"no message {type or 'at all'!r} came within {timeout:g} s")
            await self._wait(left)

    async def room(self, sender: NodeId, timeout: float | None = None) -> None:
        """Until a message of this sender outside of rounds would be kept. Raises MailboxFull, and Stopped."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            self._changed.clear()
            if self._stopped:
                raise Stopped("the receiver was stopped")
            if self._has_room(sender):
                return
            left = None if end is None else end - loop.time()
            if left is not None and left <= 0:
                raise MailboxFull(
                    f"{self._loose_of[sender]} messages of {sender} wait to be taken, and none was within {timeout:g} s"
                )
            await self._wait(left)

    def _fault(self, envelope: Envelope) -> str | None:
        """Why it is refused; None if it is not."""
        if not self._may_send(envelope):
            return "not a neighbour"
        if envelope.round is None:
            return None if self._has_room(envelope.sender) else "too many messages"
        if envelope.round < self.round:
            return "late: its round is over"
        if envelope.round > self.round + self._ahead:
            return "too far ahead"
        if envelope.sender in self._rounds.get((envelope.type, envelope.round), {}):
            return "sent twice"
        kinds = {kind for (kind, _), kept in self._rounds.items() if envelope.sender in kept}
        return "too many types" if len(kinds) >= KINDS and envelope.type not in kinds else None

    def _has_room(self, sender: NodeId) -> bool:
        fits = self._most is None or self._bytes_of[sender] < self._most
        return fits and self._loose_of[sender] < LOOSE

    def _size(self, envelope: Envelope) -> int:
        return 0 if self._most is None else nbytes(envelope.value)

    def _wake(self) -> None:
        self._changed.set()

    async def _wait(self, timeout: float | None) -> Any:
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return
