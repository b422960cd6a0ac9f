"""The side of UCX that never loads it: a process for each worker, which an actor server starts, watches and ends."""

from __future__ import annotations

import asyncio
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import Any

import msgspec

from byzflow.actors.hello import WIRE
from byzflow.actors.interpreter import interpreter, reap
from byzflow.actors.link import Frame, Link
from byzflow.actors.ucx_link import CONNECT, check
from byzflow.actors.wire import Limits
from byzflow.errors import ActorError, LinkClosed

CHILD = "from byzflow.actors.ucx_child import main; main()"
TOKEN = 32  # bytes
UCX = "actors:ucx"  # the purpose of the link beside one over UCX

Count = Callable[[str, str], None]


class Job(msgspec.Struct, frozen=True):
    """What the process is to be: the first line that it reads."""

    token: bytes
    name: str
    peer: str
    limits: Limits
    budget: int  # bytes of arrays that may be on their way into this process
    allow: list[str]


class Report(msgspec.Struct, frozen=True):
    """A line that the process writes: the port that it listens at, or whom it refused, and why."""

    port: int = 0
    refused: str = ""


@dataclass(frozen=True)
class UcxWorker:
    """A process that listens for one peer."""

    port: int
    token: bytes
    _over: asyncio.Task[None]

    async def ended(self, link: Link) -> None:
        """Wait for the end of the process or of the link to its peer."""
        closed = asyncio.create_task(_until_closed(link))
        try:
            await asyncio.wait({closed, self._over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()


class UcxWorkers:
    """Starts them; `allow` is what peers may name beside the entry points, `budget` what each may have on its way."""

    def __init__(
        self, local: bool, trusted_fabric: bool, allow: Mapping[str, Any], limits: Limits, budget: int
    ) -> None:
        check(local, trusted_fabric)
        self._allow, self._limits, self._budget = list(allow), limits, budget
        for name, value in allow.items():
            if imported(name) is not value:
                raise ActorError(f"{name!r} has to be where it is: a process of UCX's imports it by that name")

    async def serve(self, link: Link, name: str, count: Count) -> None:
        """Tell the peer where its worker listens and by what token, and wait for the end of either."""
        async with self._worker(name, link.peer, count) as worker:
            await link.send(Frame(UCX, WIRE, [worker.port, worker.token]))
            await worker.ended(link)

    @asynccontextmanager
    async def _worker(self, name: str, peer: str, count: Count) -> AsyncIterator[UcxWorker]:
        """A process, until the block ends; it listens already, and refusals are counted."""
        try:
            process, here = interpreter(CHILD, socket.SOCK_STREAM, [], {})
        except OSError as error:
            raise ActorError(f"no UCX here: its process cannot be started: {error.strerror}") from None
        reader, writer = await asyncio.open_connection(sock=here)
        over: asyncio.Task[None] | None = None
        try:
            job = Job(secrets.token_bytes(TOKEN), name, peer, self._limits, self._budget, self._allow)
            writer.write(msgspec.json.encode(job) + b"\n")
            reports = _reports(reader)
            try:
                async with asyncio.timeout(CONNECT):
                    first = await anext(reports, Report())
            except TimeoutError:
                first = Report()
            if not first.port:
                raise ActorError(f"no UCX here: {first.refused or 'its process did not come up'}")
            over = asyncio.create_task(_follow(reports, lambda reason: count(peer, reason)))
            yield UcxWorker(first.port, job.token, over)
        finally:
            ending = asyncio.create_task(_end(process, writer, over))
            try:
                code = await asyncio.shield(ending)
            except asyncio.CancelledError:  # the server closes meanwhile; nothing is to be left behind
                await asyncio.wait([ending])
                raise
            if code:
                count(peer, f"the UCX process of a worker died, with code {code}")


def imported(name: str) -> Any:
    """What stands at "module:name". Raises ActorError if nothing does."""
    module, _, path = name.partition(":")
    try:
        return reduce(getattr, path.split("."), import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ActorError(f"{name!r} cannot be imported: {error}") from None


async def _reports(reader: asyncio.StreamReader) -> AsyncIterator[Report]:
    """What the process says, until it ends or says what it must not: hostile packets may have taken it over."""
    try:
        while line := await reader.readline():
            yield msgspec.json.decode(line, type=Report)
    except (OSError, ValueError, msgspec.DecodeError):
        return


async def _end(process: subprocess.Popen[bytes], writer: asyncio.StreamWriter, over: asyncio.Task[None] | None) -> int:
    """Let a process end, and take what it still reports; its code."""
    writer.write_eof()
    code = await asyncio.to_thread(reap, process)
    if over is not None:
        await asyncio.wait([over])
    writer.close()
    return code


async def _follow(reports: AsyncIterator[Report], refused: Callable[[str], None]) -> None:
    async for report in reports:
        if report.refused:
            refused(report.refused)


async def _until_closed(link: Link) -> None:
    try:
        await link.recv()  # nothing is said there any more
    except LinkClosed:
        return
