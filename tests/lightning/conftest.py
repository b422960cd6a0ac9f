"""One run of torchrun for each number of ranks; the tests look at what it wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Found = dict[str, Any]
collect_ignore_glob = [] if find_spec("lightning") else ["test_*.py"]


def torchrun(folder: Path, ranks: int, module: str, *arguments: str) -> str:
    """Run a module on some ranks, on a port that is free; its output. No process is left behind."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    paths = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "strategies"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [*command, "-m", module, *arguments],
        cwd=folder,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, output[-6000:]
    return output


@pytest.fixture(scope="session")
def found_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Found]:
    """What `tests.lightning.matrix` finds on so many ranks; it runs once for each number."""

    @cache
    def found(ranks: int) -> Found:
        folder = tmp_path_factory.mktemp("ranks")
        torchrun(folder, ranks, "tests.lightning.matrix", str(folder / "out.json"))
        written: Found = json.loads((folder / "out.json").read_text())
        return written

    return found


@pytest.fixture(scope="session", params=[2, 4], ids=["2 ranks", "4 ranks"])
def matrix(request: pytest.FixtureRequest, found_by: Callable[[int], Found]) -> Found:
    """Feature / mechanism -> what came out."""
    found: Found = found_by(request.param)["matrix"]
    return found


@pytest.fixture(scope="session")
def four(found_by: Callable[[int], Found]) -> Found:
    """What four ranks found; one of two cannot be outvoted."""
    return found_by(4)
