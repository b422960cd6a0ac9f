"""`process:` - a worker in a process of its own, which shares tensors with this one and dies with it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from byzflow.actors.link import Link
from byzflow.actors.memory_link import ProcessLink
from byzflow.actors.remote import LinkBackend
from byzflow.errors import ActorError

PATIENCE = 2.0  # seconds for a process to end by itself
CHILD = "from byzflow.actors.child import main; main()"


class ProcessBackend(LinkBackend):
    """A fresh interpreter; never a fork, which threads of torch, gRPC or Ray do not survive.

    `threads` of torch's, and of BLAS, that the worker uses (>= 1): with a process a core, one each.
    """

    scheme = "process"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Of "process:", with the option `threads`."""
        if url != "process:" or options.keys() - {"threads"}:
            raise ActorError(f"a process worker is 'process:' with the option threads, got {url!r} {options or ''}")
        return cls(**options)

    def __init__(self, threads: int = 1) -> None:
        super().__init__()
        if threads < 1:
            raise ActorError(f"a process worker needs threads >= 1, got {threads}")
        self.threads = threads
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None before it started."""
        return None if self._process is None else self._process.pid

    async def connect(self, name: str) -> Link:
        """Start the process."""
        count = str(self.threads)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
        self._process, here = interpreter(CHILD, socket.SOCK_SEQPACKET, [name], threads)
        return ProcessLink(here, f"the process of worker {name!r} (pid {self._process.pid})")

    async def close(self) -> None:
        """End the link; a process that does not end by itself within two seconds is killed."""
        await super().close()
        if self._process is not None:
            await asyncio.shield(asyncio.to_thread(reap, self._process))


def interpreter(
    code: str, kind: socket.SocketKind, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A fresh Python that runs `code`, and this end of a socket pair; its first argument is the other's descriptor."""
    here, there = socket.socketpair(socket.AF_UNIX, kind)
    with ExitStack() as unless_started:
        unless_started.callback(here.close)
        with there:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(there.fileno()), *arguments],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                    **environment,
                },
            )
        unless_started.pop_all()
    return process, here


def reap(process: subprocess.Popen[bytes]) -> int:
    """The code that a process ends with; one that does not within two seconds is killed, which counts as 0."""
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return 0
