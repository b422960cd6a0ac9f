"""`byzflow audit`: the table, the JSON and the picture of a run's audit file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from flwr.serverapp.strategy import FedAvg

from byzflow.errors import ByzflowError
from byzflow_flower import Rejection, Robust, RoundAudit, audit_file
from byzflow_flower.audit_command import command
from tests.flower.federation import client, grid, train
from tests.flower.test_audit import far, wrong_keys
from tests.flower.test_robust import Losing


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; in the second 100 lies, 101 is malformed and excluded, 102 is silent."""
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    train(Robust(FedAvg(), "median", audit_file=path), grid(3), 2)
    robust = Robust(FedAvg(), "trimmed_mean", f=2, audit_file=path, exclude_after=2)
    train(robust, Losing(grid(hostile={0: client(far), 1: client(wrong_keys)}), lost={102}), 12)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


def test_json_tells_each_node_the_most_suspect_first(recorded: Path) -> None:
    told = json.loads(run(recorded, "--json").output)
    assert told["rounds"] == 12
    nodes = {each["node"]: each for each in told["nodes"]}
    assert [each["node"] for each in told["nodes"]][:2] == ["101", "100"]
    assert nodes["101"]["excluded"]
    assert (nodes["101"]["malformed"], nodes["101"]["counted"], nodes["101"]["suspicion"]) == (2, 0, 1)
    assert "other keys than sent" in nodes["101"]["reason"]
    assert nodes["100"]["suspicion"] > 0.8
    assert nodes["100"]["distance"] > 10
    assert nodes["100"]["share"] == pytest.approx(0, abs=0.01)
    assert (nodes["102"]["missing"], nodes["102"]["suspicion"], nodes["102"]["share"]) == (12, None, None)
    assert max(nodes[str(honest)]["suspicion"] for honest in (103, 104, 105, 106)) < 0.25


def test_the_table(recorded: Path) -> None:
    shown = run(recorded).output
    assert "12 rounds, 7 nodes, trimmed_mean(f=1)" in shown
    assert "node 101: excluded; last rejected: other keys than sent" in shown
    assert "the file holds 2 runs; --run N shows another" in shown
    assert "2 rounds, 3 nodes, median" in run(recorded, "--run", 1).output


@pytest.mark.parametrize("name", ["picture.png", "picture.svg"])
def test_the_picture(recorded: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    shown = run(recorded, "--plot", tmp_path / name).output
    assert "picture: " in shown
    assert (tmp_path / name).stat().st_size > 5_000
    if name.endswith("svg"):
        drawn = (tmp_path / name).read_text()
        assert "Who moved the model" in drawn
        assert drawn.count("<!-- × -->") == 5  # two replies in two panels, and the legend


def test_many_nodes_and_rounds_that_tell_little(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "audit.jsonl"
    for number in range(1, 80):
        weights = {2**63 + node: 1 / 300 for node in range(300)}
        audit_file.append(
            path, RoundAudit(number, "sign_majority", weights, (Rejection(5, "[red]x[/]", False),), "few")
        )
    assert "round 79: the model was kept, few" in run(path, "--plot", tmp_path / "a.png").output
    assert "[red]x[/]" in run(path).output
    audit_file.append(path, RoundAudit(1, "mean", {}))
    with pytest.raises(ByzflowError, match="names no node"):
        run(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.jsonl"], "cannot read nothing.jsonl"),
        (["{recorded}", "--run", "3"], "holds 2 runs: --run must be 1 to 2, got 3"),
        (["{recorded}", "--plot", "no/folder.png"], "cannot save the picture"),
        (["{recorded}", "--plot", "picture.nonsense"], "cannot save the picture"),
        (["{recorded}", "--plot", "picture"], "the name says the format, such as picture.png"),
    ],
)
def test_mistakes(recorded: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(ByzflowError, match=words):
        run(*(each.format(recorded=recorded) for each in arguments))
