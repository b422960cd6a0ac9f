"""One party's links: whom it listens to, whom it dials, who they are, and what each of them has cost.

Everything that speaks over sockets stands on this: pools' workers here, federations beside them. A hub knows nothing of
what is said after the hello.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from byzflow.actors.address import address, keys_for
from byzflow.actors.door import Door
from byzflow.actors.hello import REFUSED, WIRE, Hello, ended, greet, not_proven, welcome
from byzflow.actors.keys import Keys
from byzflow.actors.link import Frame
from byzflow.actors.peer import Accounts, Budget
from byzflow.actors.socket_link import SocketLink
from byzflow.actors.wire import Limits
from byzflow.errors import ActorError, LinkClosed

STRANGER = Limits(header=1 << 12, body=0, arrays=0)  # until it has said who it is
HANDSHAKE = 5.0  # seconds
ATTEMPTS = 5
FIRST, LONGEST = 0.2, 5.0  # seconds of pause between attempts

Serve = Callable[[SocketLink, Hello], Awaitable[None]]
OnTrouble = Callable[[str, str, float], None]
"""Told of each attempt that failed: host:port, the reason, and the seconds until the next."""


def pauses(random: Random, longest: float = LONGEST) -> Iterator[float]:
    """Seconds before each further attempt, for ever: doubled each time, up to `longest`, each by 0.5 to 1 at random."""
    pause = 2 * FIRST
    while True:
        yield min(pause, longest) * random.uniform(0.5, 1.0)
        pause = min(2 * pause, 2 * longest)


class Hub(Accounts):
    """Links of one party; use it with `async with`.

    Parameters
    ----------
    listen : tcp://host:port; port 0 takes a free one, see `url` afterwards. None: it only dials.
    serve : awaited with each link that was greeted, and what its dialler said; the link ends with it.
    keys : own and trusted keys, or their folder; needed unless the address is of this host alone.
    plain : go without, with a warning. Then nobody is who they say: `link.peer` is an address, `link.said` a claim.
    purpose : what the links are for, such as "actors" or "federation:RUN"; both sides must name the same.
    also : further purposes of links that come in; `serve` sees in the hello which it is.
    connections : at most so many that came in at once, and `each` of one peer, if peers are known by keys. When it is
        full, a newcomer takes the place of the peer with the lowest score, if its own is higher.
    budget : bytes of arrays of one peer that may wait here; by default twice `limits.body`. Its links are not read on
        until there is room.
    random : of the pauses between attempts.
    """

    def __init__(
        self,
        listen: str | None = None,
        serve: Serve | None = None,
        *,
        keys: str | Path | Keys | None = None,
        plain: bool = False,
        purpose: str = "actors",
        also: Sequence[str] = (),
        connections: int = 128,
        each: int = 32,
        limits: Limits | None = None,
        budget: int | None = None,
        random: Random | None = None,
    ) -> None:
        if (listen is None) != (serve is None):
            raise ActorError("a hub that listens needs `serve`, and one that does not cannot use it")
        self.limits = limits or Limits()
        super().__init__(2 * self.limits.body if budget is None else budget, forget=keys is None)
        self.host, self.port = ("", 0) if listen is None else address(listen)
        self.keys = keys_for(self.host or "localhost", keys, plain)
        self.plain, self.purpose, self.connections, self.each = plain, purpose, connections, each
        self._purposes = (purpose, *also)
        self._serve, self._random = serve, random or Random()
        self._serving: dict[SocketLink, asyncio.Task[None]] = {}  # links that came in, and what serves them
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The address that it listens at."""
        return f"tcp://{self.host}:{self.port}"

    @property
    def serving(self) -> int:
        """Links that came in and are open."""
        return sum(link.open for link in self._serving)

    async def __aenter__(self) -> Self:
        if self._serve is not None:
            names = None if self.keys is None else self.keys.names()
            context = None if self.keys is None else self.keys.context(server=True)

            def link() -> SocketLink:
                return SocketLink(STRANGER, names, self._came, self._left)

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
        if self._server is not None:
            self._server.close()
        tasks = list(self._serving.values())
        for task in tasks:
            task.cancel()
        for links in self.links.values():
            for link in links:
                await link.close()
        if tasks:
            await asyncio.wait(tasks)
        if self._server is not None:
            await self._server.wait_closed()

    async def dial(
        self, url: str, said: str = "", *, timeout: float = HANDSHAKE, attempts: int = ATTEMPTS
    ) -> SocketLink:
        """A link that both sides have greeted, dialled `attempts` times with growing pauses. Raises ActorError.

        `said` is this side's name, a claim; `timeout` is in seconds, for each step.
        """
        host, port = address(url)
        keys = keys_for(host, self.keys, self.plain)
        waits = pauses(self._random)
        problem: Exception | None = None
        for attempt in range(attempts):
            await asyncio.sleep(next(waits) if attempt else 0)
            try:
                link = await self._connected(host, port, keys, timeout)
            except ssl.SSLError as error:
                raise ActorError(not_proven(url, error)) from None
            except (OSError, TimeoutError) as error:
                problem = error
                continue
            try:
                async with asyncio.timeout(timeout):
                    await greet(link, said, self.purpose)
            except BaseException as error:
                await link.close()
                match error:
                    case LinkClosed() | TimeoutError():
                        raise ActorError(ended(url, error, keys)) from None
                    case ActorError():
                        raise ActorError(f"{url} {error}") from None
                raise
            return link
        program = "`byzflow actor-server`" if self.purpose.startswith("actors") else "the other side"
        raise ActorError(
            f"{url} cannot be reached: {problem or 'no answer'}; is {program} running there, and the port open?"
        )

    async def keep(
        self,
        url: str,
        serve: Callable[[SocketLink], Awaitable[bool | None]],
        said: str = "",
        *,
        on_trouble: OnTrouble | None = None,
        timeout: float = HANDSHAKE,
        longest: float = LONGEST,
    ) -> None:
        """Dial again and again, whether or not the other side is up yet, and serve each link, until that returns True.

        A link that ends, or LinkClosed in `serve`, is a reason to dial again; other errors of `serve` are raised.
        The pause grows up to `longest` seconds, and starts anew after a link that lasted longer than that.
        """
        host, port = address(url)
        waits = pauses(self._random, longest)
        while True:
            began = asyncio.get_running_loop().time()
            try:
                link = await self.dial(url, said, timeout=timeout, attempts=1)
            except ActorError as error:
                reason = str(error)
            else:
                reason = "the link ended"
                try:
                    if await serve(link):
                        return
                except LinkClosed as error:
                    reason = str(error)
                finally:
                    await link.close()
            if asyncio.get_running_loop().time() - began > longest:
                waits = pauses(self._random, longest)
            pause = next(waits)
            if on_trouble is not None:
                on_trouble(f"{host}:{port}", reason, pause)
            await asyncio.sleep(pause)

    async def _connected(self, host: str, port: int, keys: Keys | None, timeout: float) -> SocketLink:
        async with asyncio.timeout(timeout):
            _, link = await asyncio.get_running_loop().create_connection(
                lambda: SocketLink(self.limits, None if keys is None else keys.names(), self._met, self._left),
                host,
                port,
                ssl=None if keys is None else keys.context(server=False),
                server_hostname="" if keys is not None else None,
            )
        return link

    def _came(self, link: SocketLink) -> Budget:
        """A connection came; serve it, unless there are too many."""
        budget = self._met(link)
        same = sum(other.open and other.peer == link.peer for other in self._serving) if self.keys is not None else 0
        if same >= self.each or (self.serving >= self.connections and not self._made_room(link)):
            self.count(link.peer, "too many connections")
            link.refuse("too many connections")
        else:
            task = asyncio.get_running_loop().create_task(self._welcomed(link))
            self._serving[link] = task
            task.add_done_callback(lambda _: self._serving.pop(link, None))
        return budget

    def _made_room(self, link: SocketLink) -> bool:
        lowest = min((other for other in self._serving if other.open), key=lambda other: self.score(other.peer))
        if self.score(lowest.peer) >= self.score(link.peer):
            return False
        self.count(lowest.peer, "ended in favour of a peer with a higher score")
        lowest.refuse("its place went to a peer with a higher score")
        return True

    async def _welcomed(self, link: SocketLink) -> None:
        assert self._serve is not None
        try:
            async with asyncio.timeout(HANDSHAKE):
                hello = await welcome(link, self._purposes, self.limits)
            await self._serve(link, hello)
        except TimeoutError:
            self.count(link.peer, "no hello in time")
        except LinkClosed:
            pass  # counted below, if it sent what is not allowed
        except ActorError as error:
            if link.open:
                self.count(link.peer, str(error))
                await asyncio.gather(link.send(Frame(REFUSED, WIRE, str(error))), return_exceptions=True)
                await asyncio.sleep(0.05)  # for it to be read before the connection ends
        finally:
            for reason, times in link.stats.refused.items():
                for _ in range(times):
                    self.count(link.peer, reason)
            await link.close()
