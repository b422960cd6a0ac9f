"""The process at the other end of `process:`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from byzflow.actors.interpreter import belong_to_owner


def main() -> None:
    """Serve on the socket whose descriptor, and under the name that, are on the command line."""
    fd, name = int(sys.argv[1]), sys.argv[2]
    belong_to_owner()
    asyncio.run(_serve(socket.socket(fileno=fd), name))
    sys.stdout.flush()
    os._exit(0)  # a plain function that still runs in its thread would hold the process up


async def _serve(control: socket.socket, name: str) -> None:
    from byzflow.actors.memory_link import ProcessLink
    from byzflow.actors.remote import Worker, serve

    await serve(ProcessLink(control, "the owner of this worker"), Worker(name))
