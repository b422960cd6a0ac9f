"""The examples of the parameter server and of gossip, where the defence learns and the mean does not; and of actors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("example", "options"),
    [
        ("parameter_server.py", ["--rounds", "30", "--honest", "6"]),
        ("peer_to_peer.py", ["--rounds", "20", "--honest", "6", "--topology", "full"]),
    ],
)
def test_the_defence_learns_where_the_mean_does_not(example: str, options: list[str]) -> None:
    pytest.importorskip("sklearn")
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), *options],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    mean, defended = (float(found) for found in re.findall(r": accuracy (\d\.\d+)", run.stdout))
    assert mean < 0.4
    assert defended > 0.6


def test_the_actor_demo() -> None:
    example = [sys.executable, str(ROOT / "examples" / "actor_demo.py")]
    run = subprocess.run([*example, "--demo", "all"], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    for line in (
        "the thread computed 1 + 2, 3 + 4",
        "the process computed 1 + 2, 3 + 4",
        "process-0 got [0, 1, 2] from thread-0",
        "the sums [0, 11, 22] add up to 33",
        "broadcast: 0 not reached, the payload is None",
        "no message 'news' came within 0.05 s",
    ):
        assert line in run.stdout
    refused = [*example, "--demo", "remote", "--connect", "tcp://127.0.0.1:1"]
    run = subprocess.run(refused, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "cannot be reached" in run.stderr
