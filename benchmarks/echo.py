"""The two ends of an echo: a server in a process of its own sends every array back, and the client awaits it.

`python -m benchmarks.echo NAME FOLDER` is the server of the contestant NAME; it prints where it listens, and ends with
whoever started it. FOLDER holds the keys of both sides.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from byzflow.actors.keys import Keys

ROOT = Path(__file__).parents[1]
PR_SET_PDEATHSIG = 1
CLIENT, SERVER = "client", "server"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class End:
    """The client's end of a contestant that runs."""

    echo: Callable[[Any], Awaitable[Any]]
    """Sends an array or tensor, and returns the one that came back."""
    pids: tuple[int, ...] = ()
    """The processes of the other end, whose CPU time counts too."""
    tensors: bool = False
    """If it is given tensors; else numpy arrays."""


@dataclass(frozen=True)
class Contestant:
    """A way to send arrays between two processes."""

    name: str
    protection: str
    """"mutual TLS 1.3", "CURVE" and so on; "" for none."""
    connect: Callable[[Path], Any]
    """An async context manager, given the folder of keys; it yields an End."""
    serve: Callable[[Path], Coroutine[Any, Any, None]] | None = None
    """The other end, if it is a process of this benchmark's: prints its address and never returns."""
    needs: str = ""
    """The module without which it is absent, and after a space how to get it."""

    def missing(self) -> str:
        """How to get what it needs; "" if it is there."""
        module, _, how = self.needs.partition(" ")
        return "" if not module or find_spec(module) is not None else f"{module} is not installed: {how}"


def new_keys(folder: Path) -> None:
    """A key for each side, and each in the other's hands."""
    sides = {name: Keys.new(name, folder / name) for name in (CLIENT, SERVER)}
    sides[CLIENT].trust(SERVER, sides[SERVER].certificate)
    sides[SERVER].trust(CLIENT, sides[CLIENT].certificate)


@asynccontextmanager
async def server(name: str, folder: Path) -> AsyncIterator[tuple[str, int]]:
    """The process that serves `name`: what it printed as its address, and its pid."""
    command = [sys.executable, "-m", "benchmarks.echo", name, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = (await asyncio.to_thread(process.stdout.readline)).strip()
            if not address:
                raise RuntimeError(f"the server of {name} ended with code {process.wait()}")
            yield address, process.pid
        finally:
            process.kill()


def listening(address: str) -> None:
    """Tell the client where the server is."""
    print(address, flush=True)


def cpu_seconds(pids: tuple[int, ...]) -> float:
    """What this process and those have computed so far, all their threads together."""
    clocks = [(~pid << 3) | 2 for pid in pids]  # as clock_getcpuclockid(3) makes them
    return time.process_time() + sum(map(time.clock_gettime, clocks))


def main() -> None:
    """Serve."""
    from benchmarks.transport import CONTESTANTS

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    name, folder = sys.argv[1:]
    serve = CONTESTANTS[name].serve
    assert serve is not None
    asyncio.run(serve(Path(folder)))
    os._exit(0)


if __name__ == "__main__":
    main()
