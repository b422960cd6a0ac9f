"""What a worker is, wherever it runs: objects, calls on them, and mailboxes that only it can read."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar, copy_context
from functools import cached_property, partial
from itertools import count
from typing import Any

from byzflow.errors import ActorError, did_you_mean
from byzflow.graph.calls import awaited, called, ended
from byzflow.graph.messages import Mailbox, Message

ROOM = 1 << 31  # bytes of one sender's messages that may wait; a worker elsewhere may flood those that are here

Route = Callable[[str, Message], Awaitable[None]]
"""Carries a message to the worker of that name."""


class Host:
    """The inside of one worker. All its methods run on one event loop.

    Plain functions run one after the other in a thread of the worker's own, so that calls on one object never
    overlap; coroutines run on the loop and may wait, for a message say, while other calls go on.
    """

    def __init__(
        self, name: str, route: Route | None = None, around: Callable[..., Any] | None = None, mailbox_limit: int = 1024
    ) -> None:
        """`route` is how messages leave; without it the worker can only receive.

        `mailbox_limit` bounds the messages of one sender that wait, besides their bytes.
        `around(fn, *args, **kwargs)` runs a plain function, such as on a device; by default it just calls it.
        """
        self.name = name
        self._around = around
        self._route = route
        self._actors: dict[int, Any] = {}
        self._numbers = count(1)
        self._mailbox = Mailbox(mailbox_limit, ROOM, each=True)  # one type of message for each channel
        self._turn = asyncio.Lock()
        self._plain = ThreadPoolExecutor(1, thread_name_prefix=f"byzflow-{name}")

    async def call(
        self, fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """fn(*args, **kwargs)."""
        async with self.calling(fn, args, kwargs) as result:
            return result

    @asynccontextmanager
    async def calling(
        self, fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Any]:
        """fn(*args, **kwargs), in a block within which no other plain function begins: it might change the result."""
        _HERE.set(self)
        bound = partial(fn, *args, **(kwargs or {}))
        if inspect.iscoroutinefunction(fn):
            yield await awaited(bound())
            return
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self._turn)
            result = await self._run(bound)
            if inspect.isawaitable(result):
                await turn.aclose()  # others go on while it waits
                result = await awaited(result)
            yield result

    async def _run(self, bound: Callable[[], Any]) -> Any:
        """In the worker's thread."""
        work = bound if self._around is None else partial(self._around, bound)
        running = self._plain.submit(copy_context().run, called, work)
        over = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(over)
        except asyncio.CancelledError:
            if not running.cancel():
                await ended(over)  # a thread cannot be stopped; nothing is to be left running
            raise

    async def create(
        self, cls: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[int, list[str]]:
        """A new object: its number, and the names of its public methods."""
        actor = await self.call(cls, args, kwargs)
        number = next(self._numbers)
        self._actors[number] = actor
        return number, _methods(actor)

    async def invoke(self, number: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A public method of an object. Raises ActorError for an object or a method that is not there."""
        return await self.call(self.method(number, method), args, kwargs)

    def method(self, number: int, method: str) -> Callable[..., Any]:
        """A public method of an object, bound to it. Raises ActorError for an object or a method that is not there."""
        if number not in self._actors:
            raise ActorError(f"worker {self.name!r} has no object {number}: it was dropped, or the worker restarted")
        actor = self._actors[number]
        if not _is_method(actor, method):
            known = did_you_mean(method, _methods(actor))
            raise ActorError(f"{type(actor).__name__} has no method {method!r}; {known}")
        bound: Callable[..., Any] = getattr(actor, method)
        return bound

    def drop(self, number: int) -> None:
        """Forget an object; it may be gone already."""
        self._actors.pop(number, None)

    @property
    def actors(self) -> int:
        """How many objects live here."""
        return len(self._actors)

    def deliver(self, message: Message) -> None:
        """Take in a message; its `sender` was set by who knows the connection it came by. Raises MailboxFull."""
        self._mailbox.put(message)

    async def receive(self, channel: str, timeout: float | None = None) -> Message:
        """The next message on a channel. Raises MessageTimeout."""
        return await self._mailbox.take(channel, timeout)

    def put_back(self, message: Message) -> None:
        """Undo `receive`, for a caller that was cancelled when the message was on its way to him."""
        self._mailbox.put_back(message)

    async def send(self, to: str, channel: str, payload: Any) -> None:
        """A message to another worker of the pool, in this worker's name."""
        if self._route is None:
            raise ActorError(f"worker {self.name!r} belongs to no pool, so it cannot send to {to!r}")
        await self._route(to, Message(channel, payload, self.name))

    def close(self) -> None:
        """Forget all objects, and end the thread once what runs in it has ended."""
        self._actors.clear()
        self._plain.shutdown(wait=False, cancel_futures=True)


def _methods(actor: Any) -> list[str]:
    return [name for name in dir(actor) if _is_method(actor, name)]


def _is_method(actor: Any, name: str) -> bool:
    """If it is public and can be called. Properties are not looked at: that would run them, here on the loop."""
    if name.startswith("_") or isinstance(inspect.getattr_static(actor, name, None), property | cached_property):
        return False
    return callable(getattr(actor, name, None))


_HERE: ContextVar[Host] = ContextVar("byzflow_worker")


def here() -> Host:
    """The worker that runs this call. Raises ActorError outside of workers."""
    try:
        return _HERE.get()
    except LookupError:
        raise ActorError("this code does not run in a worker of byzflow") from None
