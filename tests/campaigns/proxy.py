"""A peer's bad network on loopback: slow, or cut within a frame."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self


class Proxy:
    """Passes bytes on to a port of this host, at most `rate` bytes a second each way; None is at once.

    `cut` bytes after it was set, counted over both ways, all connections are cut; then it is None again.
    """

    def __init__(self, port: int, rate: float | None = None) -> None:
        self.target, self.rate = port, rate
        self.cut: int | None = None
        self.cuts = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._cut_all()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner, out = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, out}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, out))
                group.create_task(self._pass(inner, writer))
        finally:
            self._writers -= {writer, out}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 14):
                if self.cut is not None:
                    kept, self.cut = data[: self.cut], self.cut - len(data)
                    if self.cut <= 0:
                        writer.write(kept)
                        self.cut, self.cuts = None, self.cuts + 1
                        self._cut_all()
                        return
                writer.write(data)
                await writer.drain()
                if self.rate is not None:
                    await asyncio.sleep(len(data) / self.rate)
        writer.close()

    def _cut_all(self) -> None:
        for writer in self._writers:
            writer.close()
