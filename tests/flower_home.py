"""A home of its own for Flower and Ray in a test, and an end to whatever they left running in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CAN_END = Path("/proc/self/environ").exists()  # what Flower left running is found in /proc


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def started_with(variable: str) -> list[int]:
    """The processes in whose environment this assignment is: what Flower and Ray started for one test."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def end(variable: str) -> list[int]:
    """End these processes, gently at first; Flower has no command that stops its local SuperLink."""
    for signal_, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        for process in started_with(variable):
            os.kill(process, signal_)
        deadline = time.monotonic() + patience
        while started_with(variable) and time.monotonic() < deadline:
            time.sleep(0.1)
    return started_with(variable)


@contextmanager
def flower_home() -> Iterator[dict[str, str]]:
    """An environment for `flwr`: offline, ports of its own. The folder's path is short, for Ray's sockets lie in it."""
    home = Path(tempfile.mkdtemp(prefix="bz"))
    http, control = free_ports(2)
    variables = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
        "FLWR_LOCAL_CONTROL_API_PORT": control,
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    try:
        yield os.environ | variables
    finally:
        left = end(f"FLWR_HOME={home}")
        shutil.rmtree(home)
    assert not left


def flwr(*arguments: str, home: dict[str, str], app: Path) -> str:
    """What `flwr ARGUMENTS`, run in an app's folder, prints, without colours."""
    done = subprocess.run(["flwr", *arguments], env=home, cwd=app, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"\x1b\[\d+m", "", done.stdout)


def last_run(home: dict[str, str], app: Path) -> dict[str, str]:
    """Status and details of the latest run: `flwr run --stream` exits with 0 even when a run fails."""
    runs = json.loads(flwr("ls", "--format", "json", home=home, app=app))["runs"]
    return max(runs, key=lambda run: str(run["pending-at"]))
