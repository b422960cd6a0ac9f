"""What slow, idle and flooding peers can do: cost themselves."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from byzflow.actors import hub, socket_link
from byzflow.actors.conformance import echo
from byzflow.actors.keys import Keys
from byzflow.actors.tcp import ActorServer, TcpBackend
from byzflow.actors.wire import PREFIX
from tests.actors.test_tcp import ALLOW, served


async def ended(reader: asyncio.StreamReader) -> float:
    began = time.perf_counter()
    with suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 20)
    return time.perf_counter() - began


def test_slow_and_silent_peers_are_closed_and_the_honest_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HANDSHAKE", 1.0)
    monkeypatch.setattr(socket_link, "BEAT", 0.2)
    monkeypatch.setattr(socket_link, "DEAD", 1.0)

    async def main() -> None:
        async with served() as server:
            honest = TcpBackend(server.host, server.port)
            await honest.start("honest")

            async def drip() -> float:  # a byte now and then
                reader, writer = await asyncio.open_connection(server.host, server.port)
                reading = asyncio.create_task(ended(reader))
                for byte in PREFIX.pack(b"bzf1", 60_000, 0) + bytes(1000):
                    if reading.done():
                        break
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.05)
                writer.close()
                return await reading

            async def silent() -> float:
                reader, writer = await asyncio.open_connection(server.host, server.port)
                took = await ended(reader)
                writer.close()
                return took

            times = await asyncio.gather(*(drip() for _ in range(20)), *(silent() for _ in range(20)))
            assert max(times) < 3 * 1.0 + 2
            assert await honest.call(echo, ("served",)) == "served"
            await asyncio.sleep(0.5)
            assert server.workers == 1
            await honest.close()

    asyncio.run(main())


def test_a_thousand_idle_connections_cost_little(tmp_path: Path) -> None:
    async def main() -> None:
        async with ActorServer("tcp://127.0.0.1:0", allow=ALLOW, connections=64) as server:
            honest = TcpBackend(server.host, server.port)
            await honest.start("honest")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            writers = []
            for _ in range(1000):
                _, writer = await asyncio.open_connection(server.host, server.port)
                writers.append(writer)
                assert server.workers <= 64
            assert await honest.call(echo, (1,)) == 1
            assert sum(sum(each.values()) for each in server.refused.values()) >= 900
            assert len(server.refused) <= 1001
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB, both ends
            for writer in writers:
                writer.close()
            await honest.close()

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < 2500:
        pytest.skip(f"only {limit} files may be open")
    asyncio.run(main())


def test_half_a_handshake_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "HANDSHAKE", 0.5)
    keys = Keys.new("server", tmp_path)

    async def main() -> None:
        async with served(keys=keys.folder) as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(b"\x16\x03\x01")
            assert await ended(reader) < 3
            writer.close()
            assert server.workers == 0

    asyncio.run(main())


def test_a_flood_of_frames_is_read_no_faster_than_it_is_answered() -> None:
    """The peer never takes an answer: it is closed or has to wait, and memory stays."""

    async def main() -> None:
        async with served() as server:
            honest = TcpBackend(server.host, server.port)
            await honest.start("honest")
            flooder: Any = TcpBackend(server.host, server.port)
            await flooder.start("flooder")
            flooder._rpc.link._transport.pause_reading()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            calls = [asyncio.create_task(flooder.call(echo, ("x" * 30_000,))) for _ in range(3000)]
            await asyncio.sleep(1.0)
            assert await honest.call(echo, ("served",)) == "served"
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000  # KB, most of it the flooder's
            await flooder.close()
            await asyncio.gather(*calls, return_exceptions=True)
            await honest.close()

    asyncio.run(main())
