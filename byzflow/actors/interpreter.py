"""Processes of one's own: how one begins, what ties it to its owner, and how it ends. Nothing of what is said to it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

PATIENCE = 2.0  # seconds for a process to end by itself
PR_SET_PDEATHSIG = 1


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


def belong_to_owner() -> None:
    """Not be interrupted beside the owner, which says when to end, and not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
