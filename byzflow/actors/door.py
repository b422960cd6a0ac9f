"""How a connection gets in where links are encrypted: first the handshake, then the link; who fails is counted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

EARLY = 1 << 16  # bytes that may come before the link is there to take them


class Door(asyncio.Protocol):
    """One connection that comes in. asyncio's own encrypted listener drops who fails the handshake, and tells nobody.

    `link` makes what takes over once the peer has shown a trusted certificate; `count(address, reason)` hears of each
    that did not.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        timeout: float,
        link: Callable[[], asyncio.BufferedProtocol],
        count: Callable[[str, str], None],
    ) -> None:
        """`timeout` of the handshake in seconds."""
        self._context, self._timeout, self._link, self._count = context, timeout, link, count
        self._shaking: asyncio.Task[None] | None = None
        self._early = b""
        self._lost: tuple[Exception | None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, unless it has: then this is the encrypted transport."""
        if self._shaking is None:
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            self._shaking = asyncio.get_running_loop().create_task(self._shake(transport))

    def data_received(self, data: bytes) -> None:
        """What came with the end of the handshake."""
        self._early += data

    def connection_lost(self, error: Exception | None) -> None:
        """It ended before the link took over."""
        self._lost = (error,)

    async def _shake(self, plain: asyncio.Transport) -> None:
        address = str(plain.get_extra_info("peername"))
        try:
            transport = await asyncio.get_running_loop().start_tls(
                plain, self, self._context, server_side=True, ssl_handshake_timeout=self._timeout
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self._count(address, f"no handshake: {getattr(error, 'reason', None) or type(error).__name__}")
            plain.abort()
            return
        assert transport is not None
        link = self._link()
        transport.set_protocol(link)
        link.connection_made(transport)
        early = memoryview(self._early[:EARLY])
        while early and not transport.is_closing():
            into = memoryview(link.get_buffer(-1))
            size = min(len(into), len(early))
            into[:size], early = early[:size], early[size:]
            link.buffer_updated(size)
        if self._lost is not None:
            link.connection_lost(*self._lost)
