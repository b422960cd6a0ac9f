"""A link over UCX: the frames of `wire` as tagged messages, bodies straight into and out of the arrays' own memory.

    head     prefix and the beginning of the header, filled up with zeros             HEAD bytes
    rest     of a header that is longer than that
    body     each array that is not empty, a message of its own

UCX itself neither encrypts nor authenticates, and bytes that are not UCX's can end the process that reads them. What is
checked here is what a peer's frames say, as on any other link.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from byzflow.actors.arena import places
from byzflow.actors.link import Frame, Link
from byzflow.actors.peer import Budget
from byzflow.actors.socket_link import DEAD, SLOWEST, WAITING
from byzflow.actors.wire import PREFIX, Limits, decode, encode, lengths, read_header
from byzflow.errors import ActorError, LinkClosed, WireError

HEAD = 512  # bytes: most frames without arrays are one message
CONNECT = 30.0  # seconds for a connection, the start of its process included
DEVICES = "UCX_NET_DEVICES"

_running: dict[asyncio.AbstractEventLoop, AsyncGenerator[Any, None]] = {}


def check(local: bool, trusted_fabric: bool) -> None:
    """Raise ActorError unless UCX may be used: it is installed, the network is declared trusted, and is named."""
    if not trusted_fabric:
        raise ActorError(
            "UCX has no encryption and no authentication: trusted_fabric=True says that nobody else is on its network "
            "(on the command line --trusted-fabric)"
        )
    if importlib.util.find_spec("ucxx") is None:
        raise ActorError("ucx: workers need ucxx, on Linux: pip install 'byzflow[ucx-cu13]' (or 'byzflow[ucx-cu12]')")
    if not local and not os.environ.get(DEVICES):
        raise ActorError(f"UCX would use every network of this host: set {DEVICES} to the trusted one, say mlx5_0:1")


async def library() -> Any:
    """The module ucxx, running for this event loop until the loop shuts down. Raises ActorError if it is in use."""
    loop = asyncio.get_running_loop()
    if loop not in _running:
        running = _library()
        module = await anext(running)
        _running[loop] = running  # an event loop closes its generators when it shuts down
        return module
    import ucxx

    return ucxx


async def _library() -> AsyncGenerator[Any, None]:
    os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")  # ucxx sets some that its own UCX does not know
    os.environ.setdefault("UCXX_LOG_LEVEL", "ERROR")  # it warns when futures run short, and makes more
    import ucxx

    options = {} if os.environ.get(DEVICES) else {"NET_DEVICES": "lo"}
    try:
        ucxx.init(options=options, progress_mode="thread", enable_python_future=True, connect_timeout=CONNECT)
    except RuntimeError as error:
        raise ActorError(f"UCX serves one event loop of a process, and another has it: {error}") from None
    loop = asyncio.get_running_loop()
    try:
        yield ucxx
    finally:
        _running.pop(loop, None)
        with suppress(ucxx.exceptions.UCXError):  # somebody still holds an error of ucxx's, and by it what it ran in
            ucxx.reset()


class UcxLink(Link):
    """One end. The first fault of the peer's frames ends the link and is counted.

    `beside` is the link over which both sides came to know each other: when it ends, so does this one, and the other
    way round. It is also what shows signs of life.
    """

    def __init__(self, endpoint: Any, limits: Limits, peer: str, budget: Budget, beside: Link | None = None) -> None:
        """`budget` is the peer's: a body that finds no room in it is not asked for until there is."""
        super().__init__()
        self.peer, self._endpoint, self._limits, self._beside = peer, endpoint, limits, beside
        self._budget, self._held, self._wanted = budget, 0, 0  # bytes that this link has of it, and waits for
        self._room = asyncio.Event()
        self._why = ""
        self._sent = self._taken = 0  # sequence numbers
        self._sending = asyncio.Lock()
        self._under_way: set[asyncio.Task[None]] = set()
        self._frames: asyncio.Queue[tuple[Frame, int] | None] = asyncio.Queue(WAITING)  # with the bytes of their arrays
        self._reading = asyncio.create_task(self._read())
        self._watching = None if beside is None else asyncio.create_task(self._watch(beside))

    async def send(self, frame: Frame) -> None:
        """Raises WireError for what cannot cross; a send that is cancelled goes on, since UCX holds its memory."""
        task = asyncio.create_task(self._push(frame))
        self._under_way.add(task)
        task.add_done_callback(self._pushed)
        await asyncio.shield(task)

    async def recv(self) -> Frame:
        """The next frame; when several wait, the peer's next are not asked for."""
        came = None if self._why and self._frames.empty() else await self._frames.get()
        if came is None:
            raise LinkClosed(self._why)
        frame, size = came
        if not self._why:
            self._give(size)
        return frame

    async def close(self) -> None:
        """End it, and wait until UCX has let go of all memory."""
        self._end("this link was closed")
        while not self._frames.empty():  # makes room for who waits to put one more
            self._frames.get_nowait()
        waiting = {self._reading, *self._under_way} - {asyncio.current_task()}
        await asyncio.wait(waiting)
        if self._watching is not None:
            self._watching.cancel()
        if self._beside is not None:
            await self._beside.close()

    async def _push(self, frame: Frame) -> None:
        async with self._sending:
            if self._why:
                raise LinkClosed(self._why)
            head, bodies, _ = encode(frame, self._sent, self._limits)
            self._sent += 1
            for piece in (head[:HEAD].ljust(HEAD, b"\0"), head[HEAD:], *bodies):
                if len(piece):
                    await self._through(self._endpoint.send(piece))
                    self.stats.bytes_out += len(piece)
            self.stats.frames_out += 1

    def _pushed(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also if nobody waits any more

    async def _read(self) -> None:
        """Take in frames until the end. It is only ever ended by the endpoint: UCX may be writing into the memory."""
        try:
            while not self._why:
                await self._frames.put(await self._frame())
                self.stats.frames_in += 1
        except WireError as fault:
            self.stats.refused[str(fault)] = self.stats.refused.get(str(fault), 0) + 1
            self._end(f"{self.peer} sent what is not allowed: {fault}")
        except LinkClosed as error:
            self._end(str(error))
        finally:
            self._end("the event loop ended")
            with suppress(asyncio.QueueFull):
                self._frames.put_nowait(None)

    async def _frame(self) -> tuple[Frame, int]:
        head = bytearray(HEAD)
        await self._fill(head)
        size, body = lengths(head[: PREFIX.size], self._limits)
        with self._in_time(size):
            rest = bytearray(max(0, PREFIX.size + size - HEAD))
            await self._fill(rest)
        header = read_header(bytes(head + rest)[PREFIX.size : PREFIX.size + size], body, self._limits)
        if header.sequence != self._taken:
            raise WireError(f"frame {header.sequence} where {self._taken} was due: replayed or lost")
        self._taken += 1
        await self._take(body)
        with self._in_time(body):
            memory = np.zeros(body, np.uint8)  # a message may be shorter than announced; nothing of ours is to show
            sizes = [array.nbytes for array in header.arrays]
            for at, nbytes in zip(places(sizes)[0], sizes, strict=True):
                await self._fill(memory[at : at + nbytes])
        return decode(header, memory), body

    @contextmanager
    def _in_time(self, size: int) -> Iterator[None]:
        """End the link if so many bytes take longer than they may."""
        allowed, why = DEAD + size / SLOWEST, f"{self.peer} sends slower than {SLOWEST} bytes a second"
        slow = asyncio.get_running_loop().call_later(allowed, self._end, why)
        try:
            yield
        finally:
            slow.cancel()

    async def _take(self, size: int) -> None:
        """Wait for room in the budget; that time is not held against the peer."""
        self._room.clear()
        self._wanted = size
        if self._budget.take(size, self._granted):
            self._held += size
            return
        await self._room.wait()
        if self._why:
            raise LinkClosed(self._why)

    def _granted(self) -> None:
        self._held += self._wanted
        self._room.set()

    def _give(self, size: int) -> None:
        self._held -= size
        self._budget.give(size)

    async def _fill(self, memory: Any) -> None:
        if len(memory):
            await self._through(self._endpoint.recv(memory))
            self.stats.bytes_in += len(memory)

    async def _through(self, request: Any) -> None:
        """Await a request of UCX's. Raises LinkClosed for whatever it raises."""
        try:
            await request
        except asyncio.CancelledError:
            self._end("a frame was cut off")  # while the memory is still there
            raise
        except Exception as error:
            error.__traceback__ = None  # ucxx keeps the error, and its frames would keep the endpoint
            self._end(f"{self.peer} is gone: {error}")
            raise LinkClosed(self._why) from None

    async def _watch(self, beside: Link) -> None:
        try:
            frame = await beside.recv()
            self._end(f"{self.peer} sent a frame of kind {frame.kind[:20]!r} beside UCX")
        except LinkClosed as error:
            self._end(str(error))

    def _end(self, why: str) -> None:
        if not self._why:
            self._why = why
            self._endpoint.abort()  # ends every request that waits, with an error
            self._budget.leave(self._granted)
            self._give(self._held)
            self._room.set()
