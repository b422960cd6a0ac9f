"""What a worker is, wherever it runs: objects, calls on them, and mailboxes that only it can read."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import count
from typing import Any

from byzflow.errors import ActorError, did_you_mean
from byzflow.graph.calls import awaited, called, ended
from byzflow.graph.messages import Mailbox, Message

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

        `around(fn, *args, **kwargs)` runs a plain function, such as on a device; by default it just calls it.
        """
        self.name = name
        self._around = around
        self._route = route
        self._actors: dict[int, Any] = {}
        self._numbers = count(1)
        self._mailbox = Mailbox(mailbox_limit)  # one type of message for each channel
        self._plain = ThreadPoolExecutor(1, thread_name_prefix=f"byzflow-{name}")

    async def call(
        self, fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """fn(*args, **kwargs)."""
        _HERE.set(self)
        bound = partial(fn, *args, **(kwargs or {}))
        if inspect.iscoroutinefunction(fn):
            return await awaited(bound())
        work = bound if self._around is None else partial(self._around, bound)
        running = self._plain.submit(copy_context().run, called, work)
        over = asyncio.wrap_future(running)
        try:
            result = await asyncio.shield(over)
        except asyncio.CancelledError:
            if not running.cancel():
                await ended(over)  # a thread cannot be stopped; nothing is to be left running
            raise
        return await awaited(result) if inspect.isawaitable(result) else result

    async def create(
        self, cls: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[int, list[str]]:
        """A new object: its number, and the names of its public methods."""
        actor = await self.call(cls, args, kwargs)
        number = next(self._numbers)
        self._actors[number] = actor
        return number, [
            name for name in dir(actor) if not name.startswith("_") and callable(getattr(actor, name, None))
        ]

    async def invoke(self, number: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A public method of an object. Raises ActorError for an object or a method that is not there."""
        if number not in self._actors:
            raise ActorError(f"worker {self.name!r} has no object {number}: it was dropped, or the worker restarted")
        actor = self._actors[number]
        if method.startswith("_") or not callable(getattr(actor, method, None)):
            known = did_you_mean(method, _methods(actor))
            raise ActorError(f"{type(actor).__name__} has no method {method!r}; {known}")
        return await self.call(getattr(actor, method), args, kwargs)

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
    return [name for name in dir(actor) if not name.startswith("_") and callable(getattr(actor, name, None))]


_HERE: ContextVar[Host] = ContextVar("byzflow_worker")


def here() -> Host:
    """The worker that runs this call. Raises ActorError outside of workers."""
    try:
        return _HERE.get()
    except LookupError:
        raise ActorError("this code does not run in a worker of byzflow") from None
