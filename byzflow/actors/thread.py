"""`thread:` - a worker on threads of this process: nothing is copied, and functions share the interpreter's lock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Self, TypeVar

from byzflow.actors.backend import Backend
from byzflow.actors.host import Host, Route
from byzflow.errors import ActorError, WorkerDied, WorkerGone
from byzflow.graph.messages import Message

R = TypeVar("R")
PATIENCE = 0.2  # seconds


class ThreadBackend(Backend):
    """An event loop in a thread, and one more thread for plain functions."""

    scheme = "thread"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Of "thread:"; there are no options."""
        if url != "thread:" or options:
            raise ActorError(f"a thread worker is 'thread:' without options, got {url!r} {options or ''}".rstrip())
        return cls()

    def __init__(self) -> None:
        self._host: Host | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._callers: set[asyncio.Future[Any]] = set()

    async def start(self, name: str, route: Route | None = None) -> None:
        """Start the threads."""
        self._loop = asyncio.new_event_loop()
        carried = None if route is None else _carried(route, asyncio.get_running_loop())
        self._host = Host(name, carried, self.around)
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"byzflow-{name}-loop", daemon=True)
        self._thread.start()

    around: Callable[..., Any] | None = None
    """Runs a plain function of the worker's; None just calls it."""

    async def call(self, fn: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """fn(*args, **kwargs), its arguments and result not copied."""
        return await self._there(lambda host: host.call(fn, args, kwargs))

    async def create(self, cls: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, list[str]]:
        """A new object."""
        return await self._there(lambda host: host.create(cls, args, kwargs))

    async def invoke(self, number: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A method of an object."""
        return await self._there(lambda host: host.invoke(number, method, args, kwargs))

    async def drop(self, number: int) -> None:
        """Forget an object."""
        if self._host is not None:
            self._host.drop(number)

    async def deliver(self, message: Message) -> None:
        """Into the mailbox, on the worker's loop."""

        async def put(host: Host) -> None:
            host.deliver(message)

        await self._there(put)

    async def receive(self, channel: str, timeout: float | None = None) -> Message:
        """From the mailbox."""
        taken: list[Message] = []

        async def take(host: Host) -> Message:
            taken.append(await host.receive(channel, timeout))
            return taken[0]

        async def give_back(host: Host) -> None:
            host.put_back(taken[0])

        try:
            return await self._there(take)
        except asyncio.CancelledError:
            if taken:
                await self._there(give_back)
            raise

    async def close(self) -> None:
        """Cancel what waits and end the loop; a plain function that runs comes to its end by itself."""
        host, loop, thread = self._host, self._loop, self._thread
        self._host = None
        if host is None or loop is None or thread is None:
            return
        host.close()
        for caller in tuple(self._callers):
            caller.cancel()
        await asyncio.shield(asyncio.to_thread(_end, loop, thread))  # to its end, also if the caller is cancelled

    async def _there(self, work: Callable[[Host], Coroutine[Any, Any, R]]) -> R:
        """Run it on the worker's loop. A cancelled caller waits until it has ended there."""
        host, there, here = self._host, self._loop, asyncio.get_running_loop()
        if host is None or there is None:
            raise WorkerGone("this thread worker is not running: it was closed, or never started")
        ended = asyncio.Event()
        began = False

        async def tracked() -> R:
            nonlocal began
            began = True
            try:
                return await work(host)
            finally:
                here.call_soon_threadsafe(ended.set)

        def settle() -> None:  # comes there after the cancelling: what has not begun by then never will
            if not began:
                here.call_soon_threadsafe(ended.set)

        running = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(tracked(), there))
        self._callers.add(running)
        try:
            return await running
        except asyncio.CancelledError:
            if self._host is None:
                raise WorkerDied(f"worker {host.name!r} was closed before it answered") from None
            there.call_soon_threadsafe(settle)
            await ended.wait()
            raise
        finally:
            self._callers.discard(running)


def _carried(route: Route, loop: asyncio.AbstractEventLoop) -> Route:
    async def carry(to: str, message: Message) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_coroutine(route(to, message)), loop))

    return carry


async def _coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    asyncio.run_coroutine_threadsafe(_wind_down(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _wind_down() -> None:
    """Cancel all tasks of this loop, and wait a moment for them: a plain function cannot be stopped."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=PATIENCE)
