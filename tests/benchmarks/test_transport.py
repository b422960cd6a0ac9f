"""The benchmark of transports runs from end to end, and counts what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.echo import ROOT
from benchmarks.transport import CONTESTANTS, SIZES, figures, goals, table


def test_it_runs(tmp_path: Path) -> None:
    file, names = tmp_path / "out.json", ["byzflow thread:", "byzflow tcp:, link alone, plain"]
    command = [sys.executable, "-m", "benchmarks.transport", "--rounds", "1", "--json", str(file), "--only", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["results"]
    assert list(found) == names
    assert all(found[name][size]["us"] > 0 for name in names for size in SIZES)
    assert all(name in done.stdout for name in names)


def test_bytes_count_both_ways() -> None:
    found = figures({"40 MB": {"wall": [0.08, 0.08, 0.08], "cpu": [0.04, 0.04, 0.04]}})["40 MB"]
    assert found["gb_s"] == pytest.approx(1.0)
    assert found["cpu_s_gb"] == pytest.approx(0.5)
    assert found["spread_us"] == 0


def test_who_is_absent_has_a_row() -> None:
    name = "pyzmq, CURVE"
    assert "absent: get it" in table({name: {"absent": "get it"}})
    assert "4.6x" not in goals({name: {"absent": "get it"}})


def test_every_peer_says_how_to_get_it() -> None:
    for each in CONTESTANTS.values():
        if each.needs:
            assert "pip install" in each.needs
