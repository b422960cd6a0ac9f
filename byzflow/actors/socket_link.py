"""A link over a socket, encrypted or plain: frames go straight between the socket and the arrays' own memory."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from byzflow.actors.buffers import Buffers
from byzflow.actors.keys import fingerprint
from byzflow.actors.link import Frame, Link
from byzflow.actors.peer import Budget
from byzflow.actors.wire import PREFIX, Header, Limits, decode, encode, lengths, pieces, read_header
from byzflow.errors import LinkClosed, WireError

PIECE = 120 << 10  # bytes that are handed to the socket at a time: measured the fastest of 64 KiB to 1 MiB
WAITING = 8  # frames that may wait to be taken; then the other end has to
BEAT = 5.0  # seconds between signs of life
DEAD = 15.0  # seconds without any byte, or with one frame that does not come to its end at SLOWEST
SLOWEST = 1 << 16  # bytes a second at which a frame has to come in
BUFFERS = Buffers()


class SocketLink(Link, asyncio.BufferedProtocol):
    """One end. What the peer sends is checked piece by piece; the first fault ends the link and is counted."""

    said: str = ""
    """Who the peer says it is: a claim. On a plain link there is nothing better; otherwise `peer` is what counts."""
    skew: float = 0.0
    """Seconds by which the peer says that its clock is ahead of this one."""
    slow: bool = False
    """If it was ended because the peer was silent, too slow to come to the end of a frame, or gone within one."""

    def __init__(
        self,
        limits: Limits,
        names: dict[str, str] | None,
        met: Callable[[SocketLink], Budget],
        left: Callable[[SocketLink], None],
    ) -> None:
        """`names`: fingerprint -> name of who may be at the other end; None where there is no encryption.

        `met` is told once the peer is known, and gives its budget; `left` once the link has ended.
        """
        super().__init__()
        self.limits, self._names, self._met, self._left = limits, names, met, left
        self._budget: Budget | None = None
        self._held = 0  # bytes of the budget that this link has
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._writable = asyncio.Event()
        self._frames: deque[tuple[Frame, int]] = deque()  # with the bytes of their arrays
        self._came = asyncio.Event()
        self._why = ""
        self._sent = self._taken = 0  # sequence numbers
        self._prefix = bytearray(PREFIX.size)
        self._header: Header | None = None
        self._body: np.ndarray[Any, Any] | None = None
        self._into, self._filled = memoryview(self._prefix), 0
        self._stage, self._body_length = "prefix", 0
        self._crowded = self._paused = False  # crowded: a body waits for room in the budget
        self._heard = self._began = self._due = self._loop.time()
        self._watch: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        """If nothing has ended it yet."""
        return not self._why

    @property
    def address(self) -> str:
        """The peer's IP address."""
        return "" if self._transport is None else str(self._transport.get_extra_info("peername")[0])

    def refuse(self, why: str) -> None:
        """End it at once."""
        self._end(why)

    # ------------------------------------------------------------------ what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note who is there, by the certificate."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=2 * PIECE)
        self._writable.set()
        session: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        address = transport.get_extra_info("peername")
        if self._names is None:
            self.peer = f"{address}"
        else:
            certificate = None if session is None else session.getpeercert(binary_form=True)
            name = None if certificate is None else self._names.get(fingerprint(certificate))
            if name is None:
                self._end("a peer whose certificate is not trusted")
                return
            self.peer = name
        self._budget = self._met(self)
        self._due = self._loop.time()
        self._beat()

    def get_buffer(self, hint: int) -> memoryview:
        """Where the next bytes go: the prefix, the header, or the arrays themselves."""
        return self._into[self._filled :] if self._filled < len(self._into) else memoryview(bytearray(1))

    def buffer_updated(self, count: int) -> None:
        """Bytes came."""
        self._heard = self._loop.time()
        self.stats.bytes_in += count
        if self._stage == "prefix" and not self._filled:
            self._began = self._heard
        self._filled += count
        try:
            while not self._why and not self._crowded and self._filled == len(self._into):
                self._next_stage()
        except WireError as fault:
            self._fault(str(fault), f"{self.peer or 'the peer'} sent what is not allowed: {fault}")

    def eof_received(self) -> None:
        """The other end is done."""
        self._gone(f"{self.peer} closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._gone(f"{self.peer or 'the peer'} is gone" + (f": {error}" if error else ""))

    def pause_writing(self) -> None:
        """The socket is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """There is room again."""
        self._writable.set()

    # ------------------------------------------------------------------ the link

    async def send(self, frame: Frame) -> None:
        """Raises WireError for what cannot cross; a send that is cancelled on its way ends the link."""
        async with self._sending:
            head, bodies, offsets = encode(frame, self._sent, self.limits)
            self._sent += 1
            end = PREFIX.unpack(head[: PREFIX.size])[2]
            whole = False
            try:
                await self._write(memoryview(head))
                for piece in pieces(bodies, offsets, end):
                    for at in range(0, piece.nbytes, PIECE):
                        await self._write(piece[at : at + PIECE])
                whole = True
            finally:
                if not whole:
                    self._end("a frame was cut off")
            self.stats.frames_out += 1

    async def recv(self) -> Frame:
        """The next frame; when several wait, the peer is not read any further."""
        while not self._frames:
            if self._why:
                raise LinkClosed(self._why)
            self._came.clear()
            await self._came.wait()
        frame, size = self._frames.popleft()
        if not self._why:
            self._read_on()
            self._give(size)
        return frame

    async def close(self) -> None:
        """End it."""
        self._end("this link was closed")
        await asyncio.sleep(0)

    async def _write(self, piece: memoryview) -> None:
        await self._writable.wait()
        if self._why or self._transport is None:
            raise LinkClosed(self._why or "this link is not open")
        self._transport.write(piece)
        self.stats.bytes_out += piece.nbytes

    def _next_stage(self) -> None:
        if self._stage == "prefix":
            size, self._body_length = lengths(self._prefix, self.limits)
            self._expect("header", memoryview(bytearray(size)))
        elif self._stage == "header":
            self._header = read_header(bytes(self._into), self._body_length, self.limits)
            if self._header.sequence != self._taken:
                raise WireError(f"frame {self._header.sequence} where {self._taken} was due: replayed or lost")
            self._taken += 1
            assert self._budget is not None
            if self._budget.take(self._body_length, self._room):
                self._begin_body()
            else:
                self._crowded = True
                self._pause()
        else:
            header, body = self._header, self._body
            assert header is not None
            assert body is not None
            self._header = self._body = None
            self._expect("prefix", memoryview(self._prefix))
            if header.kind:  # an empty one is a sign of life
                self._take(decode(header, body), body.nbytes)
            else:
                self._give(body.nbytes)

    def _begin_body(self) -> None:
        self._held += self._body_length
        self._body = BUFFERS.take(self._body_length)
        self._expect("body", self._body.data)

    def _room(self) -> None:
        """The budget has room for the body that waits."""
        self._crowded = False
        self._begin_body()
        self._read_on()

    def _give(self, size: int) -> None:
        self._held -= size
        if self._budget is not None:
            self._budget.give(size)

    def _pause(self) -> None:
        if self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        """Read again, if there is room; time in which this end did not read is not held against the peer."""
        if self._paused and not self._crowded and len(self._frames) < WAITING and self._transport is not None:
            self._paused = False
            self._heard = self._began = self._loop.time()
            self._transport.resume_reading()

    def _expect(self, stage: str, into: memoryview) -> None:
        self._stage, self._into, self._filled = stage, into, 0

    def _take(self, frame: Frame, size: int) -> None:
        self.stats.frames_in += 1
        self._frames.append((frame, size))
        self._came.set()
        if len(self._frames) >= WAITING:
            self._pause()

    def _beat(self) -> None:
        """Tell that this end lives, and see whether the other does."""
        if self._why:
            return
        now = self._loop.time()
        held_up = max(0.0, now - self._due)  # whatever kept the event loop from this kept it from hearing the peer
        self._heard, self._began = min(now, self._heard + held_up), min(now, self._began + held_up)
        reading = not self._paused
        allowed = DEAD + (self._body_length / SLOWEST if self._stage == "body" else 0)
        if reading and now - self._heard > DEAD:
            self._dead("silent", f"{self.peer} has been silent for {DEAD:g} s")
        elif reading and (self._stage != "prefix" or self._filled) and now - self._began > allowed:
            self._dead("too slow", f"{self.peer} sends slower than {SLOWEST} bytes a second")
        else:
            if not self._sending.locked() and self._writable.is_set() and self._transport is not None:
                head, _, _ = encode(Frame("", 0), self._sent, self.limits)
                self._sent += 1
                self._transport.write(head)
            self._due = now + BEAT
            self._watch = self._loop.call_at(self._due, self._beat)

    def _dead(self, reason: str, why: str) -> None:
        """End it because the peer does not come to the end of what it has to send, and count that."""
        self.slow = self.slow or not self._why
        self._fault(reason, why)

    def _fault(self, reason: str, why: str) -> None:
        """End it for what the peer did, and count that."""
        if not self._why:
            self.stats.refused[reason] = self.stats.refused.get(reason, 0) + 1
        self._end(why)

    def _gone(self, why: str) -> None:
        if (self._stage != "prefix" or self._filled) and not self._paused:
            self._dead("the connection ended within a frame", why)
        else:
            self._end(why)

    def _end(self, why: str) -> None:
        if self._why:
            return
        self._why = why
        self._came.set()
        self._writable.set()
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        if self._budget is not None:
            self._budget.leave(self._room)
            self._give(self._held)
        self._left(self)
