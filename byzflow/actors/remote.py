"""A worker at the other end of a link: what is asked of it here, and how it answers there."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from byzflow.actors.backend import Backend
from byzflow.actors.host import Host, Route
from byzflow.actors.link import Link
from byzflow.actors.rpc import PATIENCE, Rpc
from byzflow.errors import ActorError, WorkerDied, WorkerGone
from byzflow.graph.messages import Message


class LinkBackend(Backend):
    """A backend whose worker is at the other end of a link; a subclass says how the link is made."""

    def __init__(self) -> None:
        self._rpc: Rpc | None = None
        self._running: asyncio.Task[None] | None = None
        self._route: Route | None = None
        self._name = ""

    @abstractmethod
    async def connect(self, name: str) -> Link:
        """A link to a fresh worker of this name. Raises ActorError if there is none to be had."""

    async def start(self, name: str, route: Route | None = None) -> None:
        """Connect."""
        self._name, self._route = name, route
        self._rpc = Rpc(await self.connect(name), self._asked)
        self._running = asyncio.create_task(self._rpc.run())

    async def call(self, fn: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """fn(*args, **kwargs) there."""
        return await self._ask("call", self.named(fn), list(args), dict(kwargs or {}))

    async def create(self, cls: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, list[str]]:
        """A new object there."""
        match await self._ask("create", self.named(cls), list(args), dict(kwargs)):
            case [int(number), [*methods]] if all(isinstance(name, str) for name in methods):
                return number, methods
            case answer:
                raise self._no_answer("create", answer)

    async def invoke(self, number: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A method of an object there."""
        return await self._ask("invoke", number, method, list(args), dict(kwargs))

    async def drop(self, number: int) -> None:
        """Forget an object there. Who is not trusted to answer has PATIENCE seconds for it."""
        with suppress(WorkerDied, TimeoutError):
            async with asyncio.timeout(None if self.trusted else PATIENCE):
                await self._ask("drop", number)

    async def deliver(self, message: Message) -> None:
        """Into the worker's mailbox."""
        await self._ask("deliver", message.message_type, message.payload, message.sender)

    async def receive(self, channel: str, timeout: float | None = None) -> Message:
        """From the worker's mailbox."""
        late: list[Any] = []
        try:
            answer = await self._ask("receive", channel, timeout, late=late.append)
        except asyncio.CancelledError:
            if late and _is_message(late[0]):
                await self._ask("put_back", *late[0])
            raise
        if not _is_message(answer):
            raise self._no_answer("receive", answer)
        return Message(*answer)

    async def close(self) -> None:
        """End the link, and with it the worker."""
        if self._rpc is not None:
            await self._rpc.close()
        if self._running is not None and not self._running.done():
            await asyncio.wait([self._running])

    def named(self, fn: Any) -> Any:
        """What stands for a function or class on the way: itself, within one trust domain."""
        return fn

    async def _ask(self, kind: str, *arguments: Any, late: Callable[[Any], object] | None = None) -> Any:
        if self._rpc is None:
            raise WorkerGone(f"this {self.scheme} worker was never started")
        return await self._rpc.request(kind, *arguments, late=late)

    def _no_answer(self, kind: str, answer: Any) -> ActorError:
        peer = "" if self._rpc is None else self._rpc.link.peer
        return ActorError(f"{peer or 'the worker'} answered {kind!r} by what is no answer to it: {answer!r:.80}")

    @asynccontextmanager
    async def _asked(self, kind: str, arguments: list[Any]) -> AsyncIterator[None]:
        """What the worker itself may ask for: to carry a message, in the name that it was given here."""
        match kind, arguments:
            case "route", [str(to), str(channel), payload] if self._route is not None:
                await self._route(to, Message(channel, payload, self._name))
            case _:
                raise ActorError(f"a worker may not ask for {kind!r} with {len(arguments)} arguments")
        yield


class Worker:
    """The inside of a worker at this end of a link: its `answer` is what the link's `Rpc` asks."""

    def __init__(self, name: str, find: Callable[[Any], Any] = lambda fn: fn) -> None:
        """`find` turns what stands for a function into it."""
        self.host, self._find = Host(name, self._route), find
        self.rpc: Rpc | None = None  # of the link that it is reached by

    async def _route(self, to: str, message: Message) -> None:
        assert self.rpc is not None
        await self.rpc.request("route", to, message.message_type, message.payload)

    @asynccontextmanager
    async def answer(self, kind: str, arguments: list[Any]) -> AsyncIterator[Any]:
        """The result of one request, which no later call changes within the block. Raises what it raises."""
        match kind, arguments:
            case "call", [fn, args, kwargs]:
                async with self.host.calling(self._find(fn), args, kwargs) as result:
                    yield result
            case "create", [cls, args, kwargs]:
                yield list(await self.host.create(self._find(cls), args, kwargs))
            case "invoke", [int(number), str(method), args, kwargs]:
                async with self.host.calling(self.host.method(number, method), args, kwargs) as result:
                    yield result
            case "drop", [int(number)]:
                self.host.drop(number)
                yield
            case "deliver", [str(channel), payload, sender]:
                self.host.deliver(Message(channel, payload, sender))
                yield
            case "receive", [str(channel), timeout]:
                message = await self.host.receive(channel, timeout)
                yield [message.message_type, message.payload, message.sender]
            case "put_back", [str(channel), payload, None | str() as sender]:
                self.host.put_back(Message(channel, payload, sender))
                yield
            case _:
                raise ActorError(f"no such request: {kind!r} with {len(arguments)} arguments")


def _is_message(answer: Any) -> bool:
    match answer:
        case [str(), _, None | str()]:
            return True
    return False


async def serve(link: Link, worker: Worker) -> None:
    """Be the worker at this end, until the link ends."""
    worker.rpc = rpc = Rpc(link, worker.answer)
    try:
        await rpc.run()
    finally:
        worker.host.close()
