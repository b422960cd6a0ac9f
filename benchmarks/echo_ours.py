"""byzflow's own ends of an echo: each backend's call, and the links under them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.echo import CLIENT, ROOT, SERVER, Contestant, End, listening, server
from byzflow.actors.backend import resolve
from byzflow.actors.hello import Hello
from byzflow.actors.hub import Hub
from byzflow.actors.link import Frame, Link
from byzflow.actors.memory_link import ProcessLink
from byzflow.actors.tcp import ActorServer
from byzflow.errors import LinkClosed

HOST = "127.0.0.1"
SAME, PID = "benchmarks.echo_ours:same", "os:getpid"


def same(value: Any) -> Any:
    """What every worker here runs."""
    return value


# ---- calls of a worker


@asynccontextmanager
async def local(url: str, folder: Path) -> AsyncIterator[End]:
    """A worker of this host."""
    backend = resolve(url)
    await backend.start("echo")
    try:
        pid = await backend.call(os.getpid)
        yield End(lambda x: backend.call(same, [x]), () if pid == os.getpid() else (pid,), tensors=True)
    finally:
        await backend.close()


@asynccontextmanager
async def remote(name: str, keys: bool, ucx: bool, folder: Path) -> AsyncIterator[End]:
    """A worker of an `ActorServer`."""
    async with server(name, folder) as (url, _):
        options: dict[str, Any] = {"keys": folder / CLIENT if keys else None}
        if ucx:
            url, options["trusted_fabric"] = url.replace("tcp", "ucx", 1), True
        backend = resolve(url, **options)
        await backend.start("echo")
        try:
            pid = await backend.call(PID)
            yield End(lambda x: backend.call(SAME, [x]), (pid,), tensors=True)
        finally:
            await backend.close()


async def serve_actors(keys: bool, ucx: bool, folder: Path) -> None:
    """The `ActorServer`."""
    own, allow = folder / SERVER if keys else None, {SAME: same, PID: os.getpid}
    async with ActorServer(f"tcp://{HOST}:0", keys=own, allow=allow, ucx=ucx, trusted_fabric=ucx) as actors:
        listening(actors.url)
        await asyncio.Event().wait()


# ---- links alone


async def _send_back(link: Link, hello: Hello | None = None) -> None:
    while True:
        await link.send(await link.recv())


def _over(link: Link) -> Callable[[Any], Awaitable[Any]]:
    async def echo(x: Any) -> Any:
        await link.send(Frame("echo", 0, x))
        return (await link.recv()).body

    return echo


@asynccontextmanager
async def socket_link(name: str, keys: bool, folder: Path) -> AsyncIterator[End]:
    """The link of tcp: and gossip, with nothing above it."""
    own = folder / CLIENT if keys else None
    async with server(name, folder) as (url, pid), Hub(keys=own, purpose="echo") as hub:
        yield End(_over(await hub.dial(url)), (pid,), tensors=True)


async def serve_socket(keys: bool, folder: Path) -> None:
    """Its other end."""
    own = folder / SERVER if keys else None
    async with Hub(f"tcp://{HOST}:0", _send_back, keys=own, purpose="echo") as hub:
        listening(hub.url)
        await asyncio.Event().wait()


@asynccontextmanager
async def memory_link(folder: Path) -> AsyncIterator[End]:
    """The link of process:, with nothing above it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = f"from benchmarks.echo_ours import serve_memory; serve_memory({there.fileno()})"
    with there:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, pass_fds=(there.fileno(),))
    link = ProcessLink(here, "the echo")
    try:
        yield End(_over(link), (process.pid,), tensors=True)
    finally:
        await link.close()
        process.kill()
        process.wait()


def serve_memory(fd: int) -> None:
    """Its other end."""

    async def run() -> None:
        with suppress(LinkClosed):
            await _send_back(ProcessLink(socket.socket(fileno=fd), "the owner"))

    asyncio.run(run())


def contestants() -> list[Contestant]:
    """All of them."""
    found = [Contestant("byzflow thread:", "", partial(local, "thread:"))]
    found += [Contestant("byzflow process:", "", partial(local, "process:"))]
    found += [Contestant("byzflow process:, link alone", "", memory_link)]
    for protection in ("", "mutual TLS 1.3"):
        keys, kind = bool(protection), "TLS" if protection else "plain"
        name, alone = f"byzflow tcp:, {kind}", f"byzflow tcp:, link alone, {kind}"
        found += [
            Contestant(name, protection, partial(remote, name, keys, False), partial(serve_actors, keys, False)),
            Contestant(alone, protection, partial(socket_link, alone, keys), partial(serve_socket, keys)),
        ]
    name, ucx = "byzflow ucx:", "ucxx pip install 'byzflow[ucx-cu13]'"
    found += [Contestant(name, "", partial(remote, name, False, True), partial(serve_actors, False, True), needs=ucx)]
    ray = "ray pip install 'byzflow[ray]'"
    return [*found, Contestant("byzflow ray:", "", partial(local, "ray:"), needs=ray)]
