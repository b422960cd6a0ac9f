"""`process:` - a worker in a process of its own, which shares tensors with this one and dies with it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from typing import Any, Self

from byzflow.actors.interpreter import interpreter, reap
from byzflow.actors.link import Link
from byzflow.actors.memory_link import ProcessLink
from byzflow.actors.remote import LinkBackend
from byzflow.errors import ActorError

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
