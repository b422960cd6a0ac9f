"""The benchmark of data-parallel reductions runs from end to end and measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ddp import ROOT
from benchmarks.ddp_rank import CONTESTANTS, PLAIN


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    d, file = 100_000, tmp_path / "ddp.json"
    command = [sys.executable, "-m", "benchmarks.ddp", "--d", str(d), "--ranks", "2", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["results"][0]["contestants"]
    assert set(found) == set(CONTESTANTS)
    assert all(name in done.stdout for name in CONTESTANTS)
    for name in (PLAIN, "median, sharded", "krum, naive all-gather"):
        assert found[name]["bytes"] == pytest.approx(4 * d, rel=0.05)  # 2(n - 1)/n of a gradient, and for n = 2 n - 1
