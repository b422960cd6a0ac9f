"""`tcp://host:port` - workers on other machines, behind `byzflow actor-server`.

What runs there is named, never sent: a function or class counts under "module:name", and only if the server lets it in,
by an entry point of the group `byzflow.remote` or by its own `allow`. TLS with both sides' pinned certificates is on
wherever the address is not this host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from byzflow.actors.address import address, keys_for
from byzflow.actors.hello import Hello
from byzflow.actors.hub import HANDSHAKE, Hub
from byzflow.actors.link import Link
from byzflow.actors.remote import LinkBackend, serve
from byzflow.actors.socket_link import SocketLink
from byzflow.actors.wire import Limits
from byzflow.errors import ActorError

GROUP = "byzflow.remote"


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
        self.where, self.timeout = f"tcp://{host}:{port}", timeout
        self.hub = Hub(keys=keys_for(host, keys, plain), plain=plain, limits=limits)

    async def connect(self, name: str) -> Link:
        """Dial, several times with growing pauses. Raises ActorError."""
        return await self.hub.dial(self.where, name, timeout=self.timeout)

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
    url, keys, plain, connections, each, limits : as of a `Hub`.
    allow : more functions and classes that peers may name, beside the entry points of the group `byzflow.remote`.
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
        self.hub = Hub(url, self._serve, keys=keys, plain=plain, connections=connections, each=each, limits=limits)
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

    async def _serve(self, link: SocketLink, hello: Hello) -> None:
        await serve(link, hello.said, self._find)

    def _find(self, name: Any) -> Any:
        if not isinstance(name, str) or name not in self._allowed:
            shown = name[:80] if isinstance(name, str) else type(name).__name__
            raise ActorError(f"{shown!r} may not be run here: let it in by an entry point of the group {GROUP}")
        return self._allowed[name]()
