"""The examples of the parameter server and of gossip: the defence learns where the mean does not."""

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
