"""The benchmark runs end to end on a tiny shape, and its reports can be made from what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import report
from benchmarks.apart import THREAD_VARIABLES, Apart
from benchmarks.case import TOLERANCE, build, contestants, difference, flat, rows_of
from benchmarks.memory import peak
from benchmarks.peers import available
from benchmarks.plot import slope
from benchmarks.workloads import Workload, byzpy, growth, make_rows, operators

ROOT = Path(__file__).parents[2]
RULES = ("median", "krum", "nnm | trimmed_mean")
ABSENT = available()


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "benchmarks.operators", "--quick", "--rounds", "2", "--shapes", "9x300"]
    command += [word for rule in RULES for word in ("--only", rule)]
    command += ["--section", "operators", "--section", "threads", "--json", str(folder / "run.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Goals" in done.stdout
    return json.loads((folder / "run.json").read_text())


def test_every_sample_is_kept_and_says_where_it_is_from(record: dict[str, Any]) -> None:
    assert record["machine"]["threads"] == 1
    assert {"byzflow", "torch", "byzfl", "byzpy"} <= record["machine"]["versions"].keys()
    assert [w["name"] for w in record["workloads"]] == sorted(RULES)
    for workload in record["workloads"]:
        found = workload["contestants"]
        assert found.keys() >= {"byzflow", "read"}
        assert found.keys() >= set(contestants(Workload(**_fields(workload)), ABSENT))
        for name, result in found.items():
            assert result["state"] == "ok", (name, result)
            assert len(result["samples"]) == 2
            assert min(result["samples"]) <= result["median"] <= max(result["samples"])
        assert found["byzflow"]["extra_bytes"] >= 0
    assert {"gram", "mix", "network"} <= record["workloads"][-1]["contestants"].keys()
    assert record["threads"][0]["kernels"].keys() >= {"read 1", "gram 1", "gram 2", "median 1", "median 2"}


def _fields(workload: dict[str, Any]) -> dict[str, Any]:
    names = ("group", "name", "spec", "n", "d", "f", "extras", "data", "listed")
    return {name: workload[name] for name in names}


def test_a_flower_round_is_measured_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.flower_round", "--shapes", "9x300", "--rounds", "2", "--leaves", "3"]
    command += ["--only", "mean", "--only", "nnm | trimmed_mean", "--json", str(tmp_path / "run.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "replies to model in 3 arrays: n = 9, d = 300" in done.stdout
    mean, chain = json.loads((tmp_path / "run.json").read_text())["workloads"]
    assert mean["contestants"]["flower"]["agrees"]
    assert chain["contestants"]["byzflow"]["state"] == "ok"
    assert "flower" not in chain["contestants"]


def test_peers_that_compute_something_else_are_marked(record: dict[str, Any]) -> None:
    for workload in record["workloads"]:
        for result in workload["contestants"].values():
            if result["role"] == "peer":
                assert result["agrees"] == (result["difference"] <= TOLERANCE)
    if not ABSENT:
        krum = next(w for w in record["workloads"] if w["name"] == "krum")["contestants"]
        assert all(krum[name]["agrees"] for name in ("byzfl", "byzpy", "flower", "flower app"))


def test_the_reports_are_made_of_it(record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(record))
    for options in ([], ["--readme"], ["--goals"]):
        report.main([str(file), *options])
        text = capsys.readouterr().out
        widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
        assert widths
    goals = {line[0]: line for line in report.goals(record).lines}
    assert goals["ByzPy's own list: ahead"][2] == "not measured"
    assert goals["peak extra memory, of the input"][2] != "not measured"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Flower's dependencies, when they are imported
def test_every_workload_can_be_built_and_runs() -> None:
    """On few coordinates, with every library that is installed; what is not valid for n says so."""
    from byzflow.errors import NotEnoughSenders

    small = [Workload(**(vars(w) | {"d": 40})) for w in byzpy() if w.name not in ("mda", "smea")]
    for workload in (*operators([(11, 40)]), *small, *growth(small=True)):
        tiny = Workload(**(vars(workload) | {"d": 40}))
        rows = rows_of(tiny)
        for name in contestants(tiny, ABSENT):
            case = build(tiny, name, rows)
            try:
                assert flat(case.run(case.inputs)).shape[1] == 40, (tiny.label, name)
            except NotEnoughSenders:
                assert name == "byzflow"


def test_rows_are_separate_and_the_same_each_time() -> None:
    workload = Workload("operators", "median", "median", 7, 100, 1)
    one, two = make_rows(workload), make_rows(workload)
    assert len({row.untyped_storage().data_ptr() for row in one}) == 7
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_difference_is_relative_and_sees_nan() -> None:
    a = torch.ones(10)
    assert difference([a, a], np.ones((2, 10))) == 0
    assert difference(a * 1.01, a) == pytest.approx(0.01, rel=1e-4)
    assert difference(a * torch.nan, a) == float("inf")
    assert difference(a, torch.ones(9)) == float("inf")


def test_peak_memory_sees_what_a_call_allocates() -> None:
    result, seconds, extra = peak(lambda: np.ones(1 << 22).sum())
    assert result == 1 << 22
    assert seconds > 0
    assert extra is None or extra > 30 << 20


def test_what_takes_too_long_or_too_much_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    apart = Apart(1, 30)
    assert apart.run(max, 1, 2).value == 2
    assert apart.run(_sleep, limit=0.5).state == "over"
    assert apart.run(_hoard).state == "does not fit"
    assert apart.run(_fail).detail == "KeyError: 'no'"


def _sleep() -> None:
    import time

    time.sleep(60)


def _hoard() -> int:
    return len(np.ones(1 << 44))


def _fail() -> None:
    raise KeyError("no")


def test_slopes_are_exponents() -> None:
    assert slope([(n, 3e-6 * n**2) for n in (8, 32, 64, 128)], 32) == pytest.approx(2)
    assert slope([(8, 1.0), (32, 2.0)], 32) is None
