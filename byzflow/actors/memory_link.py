"""A link between a process and its child: control over a socket pair, contents in memory that both see."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from byzflow.actors.arena import Arena, Mirror
from byzflow.actors.link import Frame, Link
from byzflow.actors.objects import dumps, loads
from byzflow.errors import LinkClosed

CONTROL = 1 << 15  # bytes of a control message at most; a longer head goes through shared memory
SMALL, SHARED, DONE, FORGET = range(4)
HEADER = struct.Struct("=BqI")  # kind, slot, number of buffers
SPAN = struct.Struct("=QQ")


class ProcessLink(Link):
    """One end. Whatever is larger than a page is copied once, by the sender, and lies where the receiver uses it."""

    trusted = True

    def __init__(self, control: socket.socket, peer: str) -> None:
        """`control`: a SOCK_SEQPACKET socket, whose messages are whole frames. Call it in a running loop."""
        super().__init__()
        self.peer = peer
        self._socket = control
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._arena, self._mirror = Arena(), Mirror(self._done_anywhere)
        self._sending = asyncio.Lock()
        self._notices: deque[bytes] = deque()  # slots to give back
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    async def send(self, frame: Frame) -> None:
        """Raises TypeError for a value that cannot travel."""
        head, buffers = dumps(frame)
        async with self._sending:
            await self._flush()
            if len(head) + HEADER.size + SPAN.size * len(buffers) > CONTROL:
                buffers, head = [memoryview(head), *buffers], b""
            elif not buffers:
                await self._write(HEADER.pack(SMALL, 0, 0) + head)
                self.stats.frames_out += 1
                return
            slot, offsets = self._arena.place(buffers)
            spans = b"".join(SPAN.pack(at, each.nbytes) for at, each in zip(offsets, buffers, strict=True))
            if len(spans) > CONTROL:  # so many that even their places are too long to tell: one buffer, then
                self._free(slot.number)
                raise TypeError(f"{len(buffers)} arrays in one value; at most {CONTROL // SPAN.size} can travel")
            message = HEADER.pack(SHARED, slot.number, len(buffers)) + spans + head
            try:
                await self._write(message, () if slot.fd is None else (slot.fd,))
            except BaseException:  # cancelled: nobody was told what is in the slot
                self._free(slot.number)
                raise
            slot.close()
            self.stats.bytes_out += sum(each.nbytes for each in buffers)
        self.stats.frames_out += 1
        self._flush_soon()

    async def recv(self) -> Frame:
        """The next frame; its tensors and arrays lie in shared memory, which is reused once they are gone."""
        while True:
            message, fds = await self._read()
            kind, slot, count = HEADER.unpack_from(message)
            if kind == DONE:
                self._free(slot)
                self._flush_soon()
                continue
            if kind == FORGET:
                self._mirror.forget(slot)
                continue
            for fd in fds:
                self._mirror.map(slot, fd)
            spans = [SPAN.unpack_from(message, HEADER.size + SPAN.size * k) for k in range(count)]
            views = self._mirror.views(slot, spans) if count else []
            head = memoryview(message)[HEADER.size + SPAN.size * count :]
            if count and not head.nbytes:
                head, *views = views
            self.stats.frames_in += 1
            self.stats.bytes_in += sum(size for _, size in spans)
            return loads(head, views)

    async def close(self) -> None:
        """End the socket; memory that the other end still uses goes when it drops it."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        for future in self._waiting:
            _settle(future)
        with suppress(OSError):  # the other end was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._arena.close()
        self._mirror.close()

    def _free(self, slot: int) -> None:
        if not self._closed and self._arena.free(slot):
            self._notices.append(HEADER.pack(FORGET, slot, 0))

    def _done_anywhere(self, slot: int) -> None:
        """Called when the last view of a slot goes, on whatever thread collects it."""
        self._notices.append(HEADER.pack(DONE, slot, 0))
        if not self._closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._flush_soon)

    def _flush_soon(self) -> None:
        """Tell what is waiting, unless a send is on its way, which does so itself."""
        while self._notices and not self._closed and not self._sending.locked():
            try:
                self._socket.send(self._notices[0])
                self._notices.popleft()
            except OSError:  # no room now, or nobody there
                return

    async def _flush(self) -> None:
        while self._notices:
            await self._write(self._notices[0])
            self._notices.popleft()  # only now: a send may be cancelled

    async def _write(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        while not self._closed:
            try:
                if fds:
                    socket.send_fds(self._socket, [message], fds)
                else:
                    self._socket.send(message)
                return
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
            except OSError as error:
                raise LinkClosed(f"{self.peer} is gone: {error.strerror}") from None
        raise LinkClosed("this link was closed")

    async def _read(self) -> tuple[bytes, list[int]]:
        while not self._closed:
            try:
                message, fds, _, _ = socket.recv_fds(self._socket, 2 * CONTROL, 1)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
                continue
            except OSError as error:
                raise LinkClosed(f"{self.peer} is gone: {error.strerror}") from None
            if not message:
                for fd in fds:
                    os.close(fd)
                break
            return message, fds
        raise LinkClosed(f"{self.peer} is gone" if not self._closed else "this link was closed")

    async def _ready(self, add: Callable[..., object], remove: Callable[..., object]) -> None:
        """Wait until the socket can be read, or written; or until this end is closed."""
        future = self._loop.create_future()
        self._waiting.add(future)
        add(self._socket, _settle, future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            if not self._closed:
                remove(self._socket)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
