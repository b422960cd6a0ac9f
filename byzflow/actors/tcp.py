"""`tcp://host:port` - workers on other machines, behind `byzflow actor-server`.

What runs there is named, never sent: a function or class counts under "module:name", and only if the server lets it in,
by an entry point of the group `byzflow.remote` or by its own `allow`. TLS with both sides' pinned certificates is on
wherever the address is not this host.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from byzflow import __version__
from byzflow.actors.door import Door
from byzflow.actors.keys import Keys
from byzflow.actors.link import Frame, Link
from byzflow.actors.remote import LinkBackend, serve
from byzflow.actors.socket_link import SocketLink, dial
from byzflow.actors.wire import Limits
from byzflow.errors import ActorError, LinkClosed

GROUP = "byzflow.remote"
WIRE = 1  # version of what is said on a link
HELLO = "hello"
STRANGER = Limits(header=1 << 12, body=0, arrays=0)  # until it has said who it is
HANDSHAKE = 5.0  # seconds
ATTEMPTS = (0.0, 0.2, 0.5, 1.0, 2.0)  # seconds before each


def address(url: str) -> tuple[str, int]:
    """Host and port of tcp://host:port. Raises ActorError."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "tcp" or not parts.hostname or port is None or parts.path or parts.query:
        raise ActorError(f"{url!r} is no address; write tcp://host:7000")
    return parts.hostname, port


def is_here(host: str) -> bool:
    """If only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keys_for(host: str, keys: str | Path | None, plain: bool) -> Keys | None:
    """None for a link without encryption: on this host only, or where `plain` was asked for, with a warning."""
    if keys is not None:
        return Keys.of(keys)
    if not is_here(host):
        if not plain:
            raise ActorError(f"{host} is not this host: give keys=DIR (byzflow keys new), or plain=True to go without")
        warnings.warn(f"the link to {host} is neither encrypted nor authenticated", stacklevel=3)
    return None


class TcpBackend(LinkBackend):
    """A worker of a server at another address; it ends with the connection."""

    scheme = "tcp"
    trusted: ClassVar[bool] = False

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Of tcp://host:port; options keys=DIR, plain=False, timeout=5.0 seconds, limits."""
        return cls(*address(url), **options)

    def __init__(
        self,
        host: str,
        port: int,
        *,
        keys: str | Path | None = None,
        plain: bool = False,
        timeout: float = HANDSHAKE,
        limits: Limits | None = None,
    ) -> None:
        super().__init__()
        self.host, self.port, self.timeout = host, port, timeout
        self.keys = keys_for(host, keys, plain)
        self.limits = limits or Limits()

    async def connect(self, name: str) -> Link:
        """Dial, several times with growing pauses; then tell who speaks, and hear who answers."""
        problem: Exception | None = None
        for pause in ATTEMPTS:
            await asyncio.sleep(pause)
            try:
                link = await dial(self.host, self.port, self.keys, self.limits, self.timeout)
            except ssl.SSLError as error:
                raise ActorError(f"{self.where} does not prove to be whom you trust: {error.reason}") from None
            except (OSError, TimeoutError) as error:
                problem = error
                continue
            return await self._greet(link, name)
        raise ActorError(
            f"{self.where} cannot be reached: {problem or 'no answer'}; is `byzflow actor-server` running there, "
            "and the port open?"
        )

    @property
    def where(self) -> str:
        """Its address."""
        return f"tcp://{self.host}:{self.port}"

    async def _greet(self, link: SocketLink, name: str) -> Link:
        try:
            async with asyncio.timeout(self.timeout):
                await link.send(Frame(HELLO, WIRE, [__version__, name]))
                answer = await link.recv()
        except (LinkClosed, TimeoutError) as error:
            await link.close()
            raise ActorError(f"{self.where} ended the connection: it may not trust this side's key ({error})") from None
        match answer:
            case Frame(kind="hello", number=1, body=[str(_)]):
                return link
        await link.close()
        raise ActorError(f"{self.where} refused: {answer.body if isinstance(answer.body, str) else 'another wire'}")

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


def allowed() -> dict[str, Callable[[], Any]]:
    """What entry points let peers run: "module:name" -> what loads it."""
    return {point.value.replace(" ", ""): point.load for point in entry_points(group=GROUP)}


class ActorServer:
    """Listens, and is a fresh worker to each connection; its objects go with the connection.

    async with ActorServer("tcp://0.0.0.0:7000", keys="keys"):
        await asyncio.sleep(3600)

    Parameters
    ----------
    url : where to listen; port 0 takes a free one, see `url` afterwards.
    keys : folder of own and trusted keys; needed unless the address is of this host alone.
    plain : go without, with a warning.
    allow : more functions and classes that peers may name, beside the entry points of the group `byzflow.remote`.
    connections : at most so many at once, and `each` of one peer.
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
        limits: Limits | None = None,
    ) -> None:
        self.host, self.port = address(url)
        self.keys = keys_for(self.host, keys, plain)
        self.connections, self.each, self.limits = connections, each, limits or Limits()
        self.refused: dict[str, dict[str, int]] = {}  # peer -> reason -> count
        self._allowed = allowed() | {name: (lambda value=value: value) for name, value in (allow or {}).items()}
        self._links: dict[SocketLink, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The address that it listens at."""
        return f"tcp://{self.host}:{self.port}"

    @property
    def workers(self) -> int:
        """Connections that are served now."""
        return len(self._links)

    async def __aenter__(self) -> Self:
        names = None if self.keys is None else self.keys.names()
        context = None if self.keys is None else self.keys.context(server=True)

        def link() -> _Served:
            return _Served(self, names)

        self._server = await asyncio.get_running_loop().create_server(
            link if context is None else lambda: Door(context, HANDSHAKE, link, self.count),
            self.host,
            self.port,
            reuse_address=sys.platform != "win32",
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for link, task in tuple(self._links.items()):
            task.cancel()
            await link.close()
            await asyncio.wait([task])
        await self._server.wait_closed()

    def count(self, peer: str, reason: str) -> None:
        """Remember a refusal, of at most a thousand peers and twenty reasons each."""
        reasons = self.refused.setdefault(peer if len(self.refused) < 1000 else "others", {})
        reason = reason[:100] if len(reasons) < 20 else "other reasons"
        reasons[reason] = reasons.get(reason, 0) + 1

    def begin(self, link: SocketLink) -> None:
        """A connection came; serve it, unless there are too many."""
        same = sum(other.peer == link.peer for other in self._links) if self.keys is not None else 0
        if len(self._links) >= self.connections or same >= self.each:
            self.count(link.peer, "too many connections")
            link.refuse("too many connections")
            return
        task = asyncio.get_running_loop().create_task(self._serve(link))
        self._links[link] = task
        task.add_done_callback(lambda _: self._links.pop(link, None))

    async def _serve(self, link: SocketLink) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE):
                hello = await link.recv()
            match hello:
                case Frame(kind="hello", number=1, body=[str(version), str(name)]) if _fits(version):
                    link.limits = self.limits
                    await link.send(Frame(HELLO, WIRE, [__version__]))
                case Frame(kind="hello", body=[str(version), *_]):
                    raise ActorError(f"versions differ: {version[:20]} there, {__version__} here")
                case _:
                    raise ActorError("the first frame must be a hello")
            await serve(link, name[:64], self._find)
        except TimeoutError:
            self.count(link.peer, "no hello in time")
        except LinkClosed:
            pass  # counted below, if it sent what is not allowed
        except ActorError as error:
            self.count(link.peer, str(error))
            with_reason = link.send(Frame("refused", WIRE, str(error)))
            await asyncio.gather(with_reason, return_exceptions=True)
            await asyncio.sleep(0.05)  # for it to be read before the connection ends
        finally:
            for reason, times in link.stats.refused.items():
                for _ in range(times):
                    self.count(link.peer, reason)
            await link.close()

    def _find(self, name: Any) -> Any:
        if not isinstance(name, str) or name not in self._allowed:
            shown = name[:80] if isinstance(name, str) else type(name).__name__
            raise ActorError(f"{shown!r} may not be run here: let it in by an entry point of the group {GROUP}")
        return self._allowed[name]()


class _Served(SocketLink):
    """The listening end of a link."""

    def __init__(self, server: ActorServer, names: dict[str, str] | None) -> None:
        super().__init__(STRANGER, names)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the server, if the peer is one to talk to."""
        super().connection_made(transport)
        if self.open:
            self._server.begin(self)
        else:
            self._server.count("unknown", "certificate not trusted")


def _fits(version: str) -> bool:
    """Of versions 0.x all of one x fit, later all of one major version."""
    own, other = __version__.split("."), version.split(".")
    return own[:2] == other[:2] if own[0] == "0" else own[0] == other[0]
