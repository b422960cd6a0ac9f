"""The benchmark of pools runs on a tiny shape, and its table holds every way."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.pool import main


def test_every_way_is_timed(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    options = ["--shapes", "9x300", "--only", "nnm | trimmed_mean", "--rounds", "2", "--json", str(path)]
    done = CliRunner().invoke(main, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(path.read_text())["results"]
    assert (found["n"], found["d"], found["f"]) == (9, 300, 1)
    assert list(found["samples"]) == ["here 1", "here 2", "threads", "processes", "held"]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found["samples"].values())
    lines = done.output.splitlines()
    assert lines[0] == "| n x d | rule | here 1 | here 2 | threads | processes | held |"
    assert lines[2].startswith("| 9 x 300 | nnm \\| trimmed_mean | ")
    assert lines[2].count(" | ") == lines[0].count(" | ")
