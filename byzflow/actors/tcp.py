"""`tcp://host:port` - workers on other machines, behind `byzflow actor-server`.

What runs there is named, never sent: a function or class counts under "module:name", and only if the server lets it in,
by an entry point of the group `byzflow.remote` or by its own `allow`. TLS with both sides' pinned certificates is on
wherever the address is not this host.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from byzflow.actors.address import address, is_here, keys_for
from byzflow.actors.hello import Hello
from byzflow.actors.host import Route
from byzflow.actors.hub import ATTEMPTS, FIRST, HANDSHAKE, Hub
from byzflow.actors.kept import Kept
from byzflow.actors.link import Link
from byzflow.actors.remote import LinkBackend, Worker
from byzflow.actors.rpc import Rpc
from byzflow.actors.socket_link import SocketLink
from byzflow.actors.ucx_server import UCX, UcxWorkers
from byzflow.actors.wire import Limits
from byzflow.errors import ActorError, WorkerDied, WorkerGone

GROUP = "byzflow.remote"
LEAVING = 1.0  # seconds to say goodbye in


class TcpBackend(LinkBackend):
    """A worker of a server at another address; it ends with the connection, or `keep` seconds after it.

    With `keep` it dials again by itself. A call that was under way when the connection broke raises WorkerDied all the
    same, because it may have run; later calls wait for the new connection, and find their objects.
    """

    scheme = "tcp"
    purpose: ClassVar[str] = "actors"
    """What the server is asked for."""
    trusted: ClassVar[bool] = False
    ahead: float = 0.0
    """Seconds by which the server says that its clock is ahead of this one."""

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Of tcp://host:port; options keys=DIR, plain=False, timeout=5.0 seconds, keep=0 seconds, limits, peer."""
        return cls(*address(url, cls.scheme), **options)

    def __init__(
        self,
        host: str,
        port: int,
        *,
        keys: str | Path | None = None,
        plain: bool = False,
        timeout: float = HANDSHAKE,
        keep: float = 0.0,
        limits: Limits | None = None,
        peer: str = "",
    ) -> None:
        """`peer`: who has to answer there, by the name in trusted/; else anyone trusted, and then always the same."""
        super().__init__()
        self.where, self.timeout, self.keep, self.peer = f"tcp://{host}:{port}", timeout, keep, peer
        self._token, self._gone = "", ""  # what finds the worker again; why it is gone for good
        self._again = asyncio.Event()  # the lost link was replaced, or will not be
        self._staying: asyncio.Task[None] | None = None
        self.hub = Hub(keys=keys_for(host, keys, plain), plain=plain, purpose=self.purpose, limits=limits)

    async def connect(self, name: str) -> Link:
        """Dial, several times with growing pauses. Raises ActorError."""
        return await self.enter(name)

    async def enter(self, name: str) -> SocketLink:
        """A link that both sides have greeted."""
        link = await self._reached(name, ATTEMPTS)
        self.ahead = link.skew
        return link

    async def start(self, name: str, route: Route | None = None) -> None:
        """Connect, and have the worker kept if that was asked for."""
        await super().start(name, route)
        if self.keep:
            try:
                token = await self._ask("keep")
                if not isinstance(token, str) or not token:
                    raise self._no_answer("keep", token)
                self._token = token
            except BaseException:
                await self.close()
                raise
            self._staying = asyncio.create_task(self._stay())

    async def close(self) -> None:
        """End the worker and its objects."""
        if self._staying is not None and self._rpc is not None:
            self._staying.cancel()
            await asyncio.wait([self._staying])
            leaving = asyncio.create_task(self._rpc.request("leave"))
            await asyncio.wait([leaving], timeout=LEAVING)
            await super().close()
            await asyncio.gather(leaving, return_exceptions=True)
            self._end("the worker was closed")
        await super().close()

    async def _ask(self, kind: str, *arguments: Any, late: Callable[[Any], object] | None = None) -> Any:
        while self._token and not self._gone and self._rpc is not None and self._rpc.ended:
            self._again.clear()
            await self._again.wait()
        if self._gone:
            raise WorkerGone(self._gone)
        return await super()._ask(kind, *arguments, late=late)

    async def _stay(self) -> None:
        """Replace each link that is lost, within `keep` seconds."""
        while not self._gone:
            assert self._running is not None
            await asyncio.wait([self._running])
            try:
                async with asyncio.timeout(self.keep):
                    while not await self._rejoined():
                        await asyncio.sleep(FIRST)
            except TimeoutError:
                self._end(f"{self.where} was lost, and not reached again within {self.keep:g} s")
            except ActorError as error:
                self._end(f"{self.where} was lost: {error}")
            self._again.set()

    async def _reached(self, name: str, attempts: int) -> SocketLink:
        """A link to who was there before: another peer that is trusted too must not take its place."""
        link = await self.hub.dial(self.where, name, timeout=self.timeout, attempts=attempts)
        if self.hub.keys is not None:
            self.peer = self.peer or link.peer
            if link.peer != self.peer:
                await link.close()
                raise ActorError(f"{self.where} is answered by {link.peer}, who is not {self.peer}")
        return link

    async def _rejoined(self) -> bool:
        """If a new link leads to the same worker; False if it broke at once. Raises ActorError if that is gone."""
        link = await self._reached(self._name, sys.maxsize)
        rpc = Rpc(link, self._asked)
        running = asyncio.create_task(rpc.run())
        try:
            await rpc.request("rejoin", self._token)
        except BaseException as error:
            await rpc.close()
            await asyncio.wait([running])
            if isinstance(error, WorkerDied):
                return False
            raise
        self._rpc, self._running = rpc, running
        return True

    def _end(self, why: str) -> None:
        self._gone = self._gone or why
        self._again.set()

    def named(self, fn: Any) -> Any:
        """The name of a function or class, or the name itself."""
        if isinstance(fn, str):
            return fn
        name = getattr(fn, "__qualname__", "")
        if not name or "<" in name:
            raise ActorError(
                f"{fn!r} has no name that another machine could know: put it into a module, and name it there by an "
                f"entry point of the group {GROUP}"
            )
        return f"{fn.__module__}:{name}"


def found(name: Any, among: Mapping[str, Callable[[], Any]]) -> Any:
    """What a peer named, if it is let in. Raises ActorError."""
    if not isinstance(name, str) or name not in among:
        shown = name[:80] if isinstance(name, str) else type(name).__name__
        raise ActorError(f"{shown!r} may not be run here: let it in by an entry point of the group {GROUP}")
    return among[name]()


def allowed() -> dict[str, Callable[[], Any]]:
    """What entry points let peers run: "module:name" -> what loads it."""
    return {point.value.replace(" ", ""): point.load for point in entry_points(group=GROUP)}


class ActorServer:
    """Listens, and is a fresh worker to each connection; its objects go with the connection.

    async with ActorServer("tcp://0.0.0.0:7000", keys="keys"):
        await asyncio.sleep(3600)

    Parameters
    ----------
    url, keys, plain, connections, each, limits : as of a `Hub`.
    keep : seconds for which a worker waits, with its objects, for its peer to dial again, if the peer asked for that.
    allow : more functions and classes that peers may name, beside the entry points of the group `byzflow.remote`.
    ucx : also serve `ucx://`, each worker in a process of its own; `allow` must then name what can be imported.
    trusted_fabric : needed for that: nobody but these hosts is on the network of UCX_NET_DEVICES.
    """

    def __init__(
        self,
        url: str,
        *,
        keys: str | Path | None = None,
        plain: bool = False,
        allow: Mapping[str, Any] | None = None,
        connections: int = 128,
        each: int = 32,
        keep: float = 0.0,
        limits: Limits | None = None,
        ucx: bool = False,
        trusted_fabric: bool = False,
    ) -> None:
        self._kept = Kept(keep, each)
        self.hub = Hub(
            url,
            self._serve,
            keys=keys,
            plain=plain,
            purpose=TcpBackend.purpose,
            also=(UCX,),
            connections=connections,
            each=each,
            limits=limits,
        )
        self.ucx = None
        if ucx:
            self.ucx = UcxWorkers(is_here(self.host), trusted_fabric, allow or {}, self.hub.limits, self.hub.budget)
        self._allowed = allowed() | {name: (lambda value=value: value) for name, value in (allow or {}).items()}

    @property
    def url(self) -> str:
        """The address that it listens at."""
        return self.hub.url

    @property
    def host(self) -> str:
        """Of the address."""
        return self.hub.host

    @property
    def port(self) -> int:
        """Of the address; the one that was taken, once it listens."""
        return self.hub.port

    @property
    def refused(self) -> dict[str, dict[str, int]]:
        """What was refused: peer -> reason -> count."""
        return self.hub.refused

    @property
    def workers(self) -> int:
        """Connections that are served now."""
        return self.hub.serving

    async def __aenter__(self) -> Self:
        await self.hub.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.hub.__aexit__(kind, error, at)
        self._kept.close()

    async def _serve(self, link: SocketLink, hello: Hello) -> None:
        if hello.purpose == UCX:
            if self.ucx is None:
                raise ActorError("this server has no UCX: start it with --ucx --trusted-fabric")
            await self.ucx.serve(link, hello.said, self.hub.count)
            return
        worker = Worker(hello.said, self._find)
        owner = hello.said if self.hub.keys is None else link.peer

        @asynccontextmanager
        async def answer(kind: str, arguments: list[Any]) -> AsyncIterator[Any]:
            nonlocal worker
            match kind, arguments:
                case "keep", []:
                    yield self._kept.keep(worker, owner, link)
                case "rejoin", [str(token)]:
                    unused, (worker, earlier) = worker, self._kept.rejoin(token, owner, rpc)
                    self._kept.left(unused, link)
                    if earlier is not link:
                        await earlier.close()
                    yield
                case "leave", []:
                    self._kept.forget(worker)
                    yield
                case _:
                    async with worker.answer(kind, arguments) as result:
                        yield result

        worker.rpc = rpc = Rpc(link, answer)
        try:
            await rpc.run()
        finally:
            self._kept.left(worker, link)

    def _find(self, name: Any) -> Any:
        return found(name, self._allowed)
