"""A federation's ledgers: what every node that aggregates did can be computed again, and a changed bit shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from byzflow.cli.ledger import check
from byzflow.errors import FederationError
from byzflow.federation.federation import Federation
from byzflow.federation.nodes import AttackNode
from tests.federation.test_federation import Constant, Wide


def checked(folder: Path) -> dict[str, Any]:
    result = CliRunner().invoke(check, [str(folder), "--json"])
    assert result.exit_code in (0, 1), result.output
    return {"exit": result.exit_code, **json.loads(result.output)}


@pytest.mark.parametrize(
    ("graph", "rule", "ledgers"), [("star", "nnm | trimmed_mean", 1), ("full", "cs_plus", 6), ("full", "median", 6)]
)
def test_every_output_is_what_its_rule_makes_of_its_inputs(graph: str, rule: str, ledgers: int, tmp_path: Path) -> None:
    nodes: list[Any] = [Constant(float(i), float(i)) for i in range(4)] + [Wide(1.0), AttackNode("sign_flip")]
    f = None if rule == "median" else 1
    Federation(nodes, graph, rule, f=f, ledger=tmp_path).train(3)
    found = checked(tmp_path)
    assert found == {"exit": 0, "ledgers": ledgers, "faults": []}
    lines = next(tmp_path.glob("*.jsonl")).read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]


def test_a_changed_output_is_found_by_node_and_round(tmp_path: Path) -> None:
    Federation([Constant(1.0), Constant(2.0)], defence="mean", ledger=tmp_path).train(2)
    file = tmp_path / "server.jsonl"
    first, second = file.read_text().splitlines()
    entry = json.loads(second)
    entry["output"] = json.loads(first)["output"][::-1]
    file.write_text(f"{first}\n{json.dumps(entry)}\n")
    found = checked(tmp_path)
    assert found["exit"] == 1
    assert [(fault["node"], fault["round"]) for fault in found["faults"]] == [("server", 1)]


def test_names_of_nodes_are_no_paths(tmp_path: Path) -> None:
    Federation({"../a": Constant(1.0), "b/c": Constant(2.0)}, "full", "mean", ledger=tmp_path / "kept").train(1)
    assert sorted(each.name for each in (tmp_path / "kept").glob("*.jsonl")) == ["..%2Fa.jsonl", "b%2Fc.jsonl"]


def test_a_folder_that_holds_rounds_is_refused_but_for_a_run_that_goes_on(tmp_path: Path) -> None:
    def run(rounds: int, **more: Any) -> None:
        Federation([Constant(1.0), Constant(2.0)], defence="mean", ledger=tmp_path / "ledger", **more).train(rounds)

    run(2)
    (tmp_path / "ledger" / "somebody.jsonl").write_text("")
    with pytest.raises(FederationError, match=r"server.jsonl holds rounds of an earlier run: resume that one"):
        run(2)
    run(3, checkpoint=tmp_path / "kept", resume=True)  # no checkpoint was made yet: all rounds again
    found = checked(tmp_path / "ledger")
    assert (found["exit"], found["faults"]) == (0, [])
    assert len((tmp_path / "ledger" / "server.jsonl").read_text().splitlines()) == 3


def test_a_rule_with_a_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="remembers center"):
        Federation([Constant(1.0)], defence="centered_clipping(f=0, tau=1.0)", ledger=tmp_path)
