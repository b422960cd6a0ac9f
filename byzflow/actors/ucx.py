"""`ucx://host:port` - workers over a fast network that is trusted, behind `byzflow actor-server --ucx`.

The address is that of the server's TLS side, where both sides prove who they are. There the client is told the port of
a UCX listener, opened for it alone in a process of its own, and a token that is to be its first message on UCX.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from byzflow.actors.address import is_here
from byzflow.actors.hello import REFUSED
from byzflow.actors.link import Frame, Link
from byzflow.actors.peer import Budget
from byzflow.actors.socket_link import SocketLink
from byzflow.actors.tcp import TcpBackend
from byzflow.actors.ucx_link import CONNECT, UcxLink, check, library
from byzflow.actors.ucx_server import UCX
from byzflow.actors.wire import Limits
from byzflow.errors import ActorError, LinkClosed, legible


class UcxBackend(TcpBackend):
    """A worker in a process of its own at another address; it ends with the connection.

    `trusted_fabric=True` is needed, on both sides: UCX has neither encryption nor authentication. Tensors on a GPU
    go through the host's memory.
    """

    scheme = "ucx"
    purpose = UCX

    def __init__(
        self,
        host: str,
        port: int,
        *,
        trusted_fabric: bool = False,
        keys: str | Path | None = None,
        plain: bool = False,
        timeout: float = CONNECT,
        limits: Limits | None = None,
        peer: str = "",
    ) -> None:
        """As `tcp://`; `timeout` in seconds is for each of: the TLS side, its start of the process, UCX."""
        check(is_here(host), trusted_fabric)
        super().__init__(host, port, keys=keys, plain=plain, timeout=timeout, limits=limits, peer=peer)

    async def connect(self, name: str) -> Link:
        """Be known to the server, then open UCX with the token that it gave."""
        control = await self.enter(name)
        try:
            return await self._open(control, *await self.granted(control))
        except BaseException:
            await control.close()
            raise

    async def granted(self, control: Link) -> tuple[int, bytes]:
        """The port and the token, once the server has started the process. Raises ActorError."""
        try:
            async with asyncio.timeout(self.timeout):
                answer = await control.recv()
        except (LinkClosed, TimeoutError) as error:
            raise ActorError(f"{self.where} has started no UCX worker: {error or 'no answer'}") from None
        match answer:
            case Frame(kind=kind, number=1, body=[int(port), bytes(token)]) if kind == UCX and 0 < port < 1 << 16:
                return port, token
            case Frame(kind=kind, body=str(reason)) if kind == REFUSED:
                raise ActorError(f"{self.where} refused: {legible(reason, 500)}")
        raise ActorError(f"{self.where} answered by another wire")

    async def _open(self, control: SocketLink, port: int, token: bytes) -> Link:
        ucxx = await library()
        try:
            endpoint = await ucxx.create_endpoint(control.address, port, connect_timeout=self.timeout)
            await endpoint.send(token)
        except Exception as error:  # UCX's own, of many kinds
            error.__traceback__ = None  # see UcxLink
            raise ActorError(f"{self.where} cannot be reached by UCX: {error}; is it on UCX_NET_DEVICES?") from None
        link = UcxLink(endpoint, self.hub.limits, control.peer, Budget(self.hub.budget), control)
        try:
            async with asyncio.timeout(self.timeout):
                answer = await link.recv()
        except (LinkClosed, TimeoutError) as error:
            await link.close()
            raise ActorError(f"{self.where} ended the connection over UCX: {error or 'no answer'}") from None
        match answer:
            case Frame(kind="hello", number=1):
                return link
        await link.close()
        raise ActorError(f"{self.where} answered by another wire")
