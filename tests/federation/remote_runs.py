"""Runs of nodes for tests: in one event loop over real links on this host, or in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from byzflow.federation import remote
from byzflow.federation.federation import Federation
from byzflow.federation.nodes_file import NodesFile
from byzflow.federation.remote_server import RemoteServer
from byzflow.federation.remote_worker import Outcome, RemoteWorker
from byzflow.federation.report import RoundReport

ROOT = Path(__file__).parents[2]
NODE = [sys.executable, str(ROOT / "examples" / "remote_tcp" / "ps_node.py")]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "PYTHON": sys.executable,
    "OMP_NUM_THREADS": "1",
}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


def nodes(port: int, honest: int = 3, byzantine: int = 0, **more: Any) -> dict[str, Any]:
    """A file of a star, as plain data; `training` and further keys are added to what is there."""
    training = {"rounds": 4, "batch_size": 16, "dataset": "synthetic", "model": "softmax", "deadline": 5.0}
    workers = [{"id": id, "type": "honest" if id < honest else "byzantine"} for id in range(honest + byzantine)]
    return {
        "training": training | {"patience": 20.0} | more.pop("training", {}),
        "server": {"host": "127.0.0.1", "port": port, "bind_host": "127.0.0.1"},
        "workers": workers,
        **more,
    }


def setup(plain: dict[str, Any]) -> remote.Setup:
    """The set-up of a file."""
    return remote.setup(msgspec.convert(plain, NodesFile), "workers", Path("nowhere"))


async def star(plain: dict[str, Any], workers: Sequence[int] | None = None) -> tuple[RemoteServer, list[Outcome]]:
    """A whole run; `workers` take part, all of the file unless said."""
    made = setup(plain)
    server = RemoteServer(made)
    ids = [each["id"] for each in plain["workers"]] if workers is None else workers
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(server.run())
        outcomes = [group.create_task(RemoteWorker(made, id).run()) for id in ids]
    return server, [each.result() for each in outcomes]


def equal(report: RoundReport) -> bool:
    """If all who told their model's digest had the same."""
    return len(report.digests) == 1


def write(plain: dict[str, Any], path: Path) -> Path:
    """A file of nodes, as JSON."""
    path.write_text(json.dumps(plain))
    return path


@contextmanager
def process(*arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """A node in a process of its own, killed in the end."""
    command = [*NODE, *map(str, arguments)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def rounds_in(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file that are whole."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def until(true: Any, seconds: float = 60.0) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def in_one_process(plain: dict[str, Any]) -> str:
    """The digest that the same nodes come to in `Federation`."""
    made = setup(plain)
    federation = Federation(
        {each.id: made.node(each, "honest") for each in made.members}, "star", made.rule, evaluate_every=0
    )
    history = federation.train(made.file.training.rounds)
    (digest,) = history[-1].digests
    return digest
