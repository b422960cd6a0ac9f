"""Hosts for tests: each has a network, a process table and a /dev/shm of its own, and a bridge connects them.

    with hosts(2) as (one, other):
        with other.popen([sys.executable, "-m", "http.server", "80"]):
            one.run(["curl", f"http://{other.address}"])

They are kernel namespaces, each held by one process, and nothing else holds them: when it ends, also because the tests
were killed, all that runs in there is killed, and its links and mounts are gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

NEEDED = ("ip", "tc", "unshare", "nsenter", "setpriv", "mount")
OWN = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child"]
LIFE = "mount -t tmpfs none /dev/shm && ip link set lo up && echo there && exec sleep infinity"


@cache
def unavailable() -> str:
    """Why there can be no such hosts here; empty if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run([*OWN, "--mount-proc", "true"], capture_output=True, text=True, timeout=30)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Host:
    """One host; `pid` is of the process that holds it."""

    pid: int
    address: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """What runs `argv` there."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--net", "--ipc", "--pid", "--", *argv]

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end; options as subprocess.run. Raises CalledProcessError, TimeoutExpired (60 s)."""
        given = {"check": True, "text": True, "capture_output": True, "timeout": 60} | options
        return subprocess.run(self.command(argv), **given)

    @contextmanager
    def popen(self, argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A process there, killed in the end."""
        given = {"text": True, "stdout": subprocess.PIPE} | options
        with subprocess.Popen(self.command(argv), **given) as process:
            inner = None
            try:
                yield process
            finally:
                if process.poll() is None:
                    inner = _child(process.pid)  # nsenter waits for it; killed alone, it would leave it behind
                for pid in filter(None, (inner, process.pid)):
                    if process.poll() is None:
                        _kill(pid)

    def slow_down(self, mbit: int) -> None:
        """Send no faster than so many megabits a second."""
        self.run(f"tc qdisc add dev eth0 root tbf rate {mbit}mbit burst 256kb latency 200ms".split())


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """`count` (1 to 250) hosts on one bridge, with addresses 10.77.0.1 and so on. They know no other network."""
    with ExitStack() as stack:
        switch = Host(stack.enter_context(_held()), "")
        switch.run(["ip", "link", "add", "bridge", "type", "bridge"])
        switch.run(["ip", "link", "set", "bridge", "up"])
        made = []
        for k in range(count):
            host = Host(stack.enter_context(_held()), f"10.77.0.{k + 1}")
            add = f"ip link add port{k} type veth peer name eth0 netns {host.pid}".split()
            subprocess.run(["nsenter", "--target", str(switch.pid), "--net", *add], check=True)  # its pids are ours
            switch.run(f"ip link set port{k} master bridge up".split())
            host.run(f"ip address add {host.address}/24 dev eth0".split())
            host.run(["ip", "link", "set", "eth0", "up"])
            made.append(host)
        yield made


@contextmanager
def _held() -> Iterator[int]:
    """The process that holds a host."""
    command = [*OWN, "--mount-proc", "sh", "-c", LIFE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            yield _child(process.pid)
        finally:
            process.kill()  # and with it the other, its child, and all processes in the namespaces of that


def _child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
