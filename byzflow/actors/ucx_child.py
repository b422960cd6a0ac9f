"""The process of one UCX worker: listens, lets in who shows the token, and serves that peer until it goes."""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from byzflow import __version__
from byzflow.actors.hello import HELLO, WIRE
from byzflow.actors.hub import HANDSHAKE
from byzflow.actors.interpreter import belong_to_owner
from byzflow.actors.link import Frame
from byzflow.actors.peer import Budget
from byzflow.actors.remote import Worker, serve
from byzflow.actors.tcp import allowed, found
from byzflow.actors.ucx_link import CONNECT, UcxLink, library
from byzflow.actors.ucx_server import TOKEN, Job, Report, imported

ATTEMPTS = 16  # who comes without the token; then the process ends


def main() -> None:
    """Serve as the owner says on the socket whose descriptor is on the command line."""
    belong_to_owner()
    asyncio.run(_main(socket.socket(fileno=int(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)  # a plain function that still runs in its thread would hold the process up


async def _main(control: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=control)
    job = msgspec.json.decode(await reader.readline(), type=Job)

    def tell(report: Report) -> None:
        writer.write(msgspec.json.encode(report) + b"\n")

    def refuse(reason: str) -> None:
        tell(Report(refused=reason))

    gone = asyncio.create_task(reader.read())  # the owner says no more, and goes
    door = Door(job.token, refuse)
    listener = (await library()).create_listener(door.arrived, 0, connect_timeout=CONNECT)
    tell(Report(port=listener.port))
    await asyncio.wait({gone, door.opened}, timeout=CONNECT, return_when=asyncio.FIRST_COMPLETED)
    door.opened.cancel()
    if not door.opened.cancelled():
        link = UcxLink(door.opened.result(), job.limits, job.peer, Budget(job.budget))
        await link.send(Frame(HELLO, WIRE, [__version__]))
        names = allowed() | {name: partial(imported, name) for name in job.allow}
        serving = asyncio.create_task(serve(link, Worker(job.name, lambda name: found(name, names))))
        await asyncio.wait({gone, serving}, return_when=asyncio.FIRST_COMPLETED)
        await link.close()
        for reason, times in link.stats.refused.items():
            for _ in range(times):
                refuse(reason)
    elif not gone.done():
        refuse("nobody came with the token in time")
    await door.empty.wait()
    listener.close()  # not before: the port stays open as long as an endpoint that came by it, and this answers there
    with suppress(ConnectionError):  # the owner was killed
        await writer.drain()


class Door:
    """What stands between UCX's listener and the worker: the first message has to be the token, which works once.

    `opened` is the endpoint that showed it; cancelled, nobody is let in any more. `empty`: nobody is being asked.
    """

    def __init__(self, token: bytes, refuse: Callable[[str], None]) -> None:
        self.opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._token, self._refuse, self._attempts = token, refuse, ATTEMPTS
        self._inside = 0
        self.empty = asyncio.Event()
        self.empty.set()

    async def arrived(self, endpoint: Any) -> None:
        """UCX's callback for whoever connects."""
        self._inside += 1
        self.empty.clear()
        try:
            await self._ask(endpoint)
        finally:
            self._inside -= 1
            if not self._inside:
                self.empty.set()

    async def _ask(self, endpoint: Any) -> None:
        shown = bytearray(TOKEN)
        late = asyncio.get_running_loop().call_later(HANDSHAKE, endpoint.abort)
        try:
            await endpoint.recv(shown)
        except Exception as error:
            error.__traceback__ = None  # see UcxLink
            why = "no token"
        else:
            why = "" if hmac.compare_digest(shown, self._token) else "a wrong token"
            why = "a token that was used" if not why and self.opened.done() else why
        finally:
            late.cancel()
        if not why:
            self.opened.set_result(endpoint)
            return
        self._refuse(why)
        await endpoint.close()
        self._attempts -= 1
        if not self._attempts:
            self.opened.cancel()  # without effect on who is in
