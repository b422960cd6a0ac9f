"""What a call needs beside its rows and its answer: at most a tenth of the rows, for every rule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import byzflow

N, D = 10, 1_000_000
FIXED = 2 << 20  # bytes: threads that start, and what their heaps keep
KINDS = ("aggregator", "pre-aggregator")
NAMES = [entry.operator.name for kind in KINDS for entry in byzflow.installed().of_kind(kind)]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak")]


@pytest.fixture(scope="module")
def extra_bytes() -> dict[str, int]:
    command = [sys.executable, "-m", "tests.operators.extra_memory", str(N), str(D)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name: extra for line in done.stdout.splitlines() for name, extra in json.loads(line).items()}


@pytest.mark.parametrize("name", NAMES)
def test_extra_memory_is_at_most_a_tenth_of_the_rows(extra_bytes: dict[str, int], name: str) -> None:
    assert extra_bytes[name] <= N * D * 4 // 10 + FIXED
