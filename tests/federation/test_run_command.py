"""`byzflow run`: the example, sweeps, plain lines and JSON, a live view, mistakes in one line."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from byzflow.cli import Commands
from byzflow.cli.ledger import check
from byzflow.cli.run import command
from byzflow.federation import config, schemas
from byzflow.federation.live_view import curve, live_view
from byzflow.federation.nodes import AttackNode

EXAMPLE = Path(__file__).parents[2] / "examples" / "federation.toml"
SMALL = """
[federation]
rounds = 3
[nodes]
count = 5
byzantine = 1
[data]
name = "synthetic"
train = 200
test = 50
"""


class OnlyRun(Commands):
    """The command line, whatever is installed."""

    def points(self) -> dict[str, Any]:
        return {"run": None}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command if cmd_name == "run" else None


def run(*arguments: str) -> Any:
    return CliRunner().invoke(OnlyRun("byzflow"), ["run", *arguments])


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "run.toml"
    path.write_text(SMALL)
    return str(path)


def test_the_example_learns_though_three_of_ten_lie() -> None:
    result = run(str(EXAMPLE), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["rounds"] == 60
    assert found["metrics"]["accuracy"] >= 0.88
    assert found["digests_equal"] is True
    assert found["byzantine_weight"] < 0.2


def test_without_a_terminal_a_line_a_round(file: str) -> None:
    result = run(file)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[:3]] == ["round 1", "round 2", "round 3"]
    assert "models equal after every round" in lines


def test_json_with_rounds_is_an_object_a_line(file: str) -> None:
    found = [json.loads(line) for line in run(file, "--json", "--rounds").stdout.splitlines()]
    assert [each.get("round") for each in found] == [0, 1, 2, None]
    assert found[-1]["rounds"] == 3


def test_a_sweep_of_twenty_runs(file: str) -> None:
    sweeps = ("--sweep", "training.lr=0.05,0.1,0.2,0.3,0.4", "--sweep", "defence.rule=mean,median,nnm | median,krum")
    result = run(file, "--json", "--set", "federation.rounds=1", *sweeps)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 20
    assert found[1]["sweep"] == {"training.lr": 0.05, "defence.rule": "median"}
    assert all("accuracy" in each["metrics"] for each in found)
    table = run(file, "--set", "federation.rounds=1", "--sweep", "defence.rule=mean,median").stdout
    assert "Byzantine weight" in table


def test_rounds_go_to_a_file_and_the_last_is_evaluated(file: str, tmp_path: Path) -> None:
    out = tmp_path / "m.csv"
    result = run(file, "--set", f"metrics.file={out}", "--set", "metrics.every=2")
    assert result.exit_code == 0, result.output
    rows = [line.split(",") for line in out.read_text().splitlines()]
    assert [row[0] for row in rows] == ["round", "1", "2", "3"]
    assert [bool(row[6]) for row in rows[1:]] == [False, True, True]


def test_nodes_live_on_workers_if_the_file_says_so(file: str) -> None:
    here = json.loads(run(file, "--json").stdout)
    away = run(file, "--json", "--set", "nodes.backend=process:", "--set", "nodes.workers=2")
    assert away.exit_code == 0, away.output
    found = json.loads(away.stdout)
    assert found["digests_equal"] is True
    assert found["metrics"]["accuracy"] == pytest.approx(here["metrics"]["accuracy"], abs=0.03)


def test_a_loss_that_is_no_number_is_null_in_json(file: str) -> None:
    result = run(file, "--json", "--set", "training.lr=1e30", "--set", "defence.rule=mean")
    assert ":NaN" not in result.stdout
    assert json.loads(result.stdout)["metrics"]["loss"] is None


def test_check_runs_nothing(file: str) -> None:
    result = run(file, "--check")
    assert result.stdout == (
        "star: 5 nodes, 1 Byzantine (sign_flip); nnm | trimmed_mean for f=1; mlp on synthetic, iid; 3 rounds\n"
    )
    assert json.loads(run(file, "--check", "--json").stdout)["config"]["nodes"]["count"] == 5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--set", "nodes.cuont=3"), "byzflow: --set nodes.cuont: unknown key; did you mean nodes.count"),
        (("--set", "nodes.count=1"), "nodes.count: must be int >= 2, got 1"),
        (("--set", "defence.f=2", "--set", "nodes.count=4"), "defence: nnm(f=2) | trimmed_mean(f=2) needs at least 5"),
        (("--set", "metrics.file=m.txt"), "metrics.file: m.txt must end in .csv or .jsonl"),
        (("--set", "metrics.file=m.csv", "--sweep", "defence.f=0,1"), "2 runs would write over each other's m.csv"),
        (("--set", "federation.ledger=l", "--sweep", "defence.f=0,1"), "federation.ledger: 2 runs would write over"),
        (("--set", "federation.checkpoint=c", "--sweep", "defence.f=0,1"), "federation.checkpoint: 2 runs would write"),
        (("--resume",), "federation.resume: means nothing without a folder: set federation.checkpoint"),
        (("--sweep", "defence.f=0,4"), "defence.f=4: defence: nnm(f=4) | trimmed_mean(f=4) needs at least 9"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_any_run(file: str, arguments: tuple[str, ...], told: str) -> None:
    result = run(file, *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


KILLED = """
import os, signal, sys
from byzflow.cli import run
from byzflow.federation import checkpoint

save, saved = checkpoint.save, []

def killed(*given):  # in the sixth round, when the ledger has it and the checkpoint does not
    saved.append(save(*given) if len(saved) < 2 else os.kill(os.getpid(), signal.SIGKILL))

checkpoint.save = killed
run.command(sys.argv[1:])
"""


@pytest.mark.parametrize("graph", ["star", "ring"])
def test_a_killed_run_goes_on_and_ends_as_one_without_a_break(tmp_path: Path, graph: str) -> None:
    def written(name: str) -> str:
        (tmp_path / name).mkdir()
        path = tmp_path / name / "run.toml"
        kept = f"topology = '{graph}'\ncheckpoint = 'kept'\ncheckpoint_every = 2\nledger = 'ledger'\nrounds = 7\n"
        metrics = f"[metrics]\nfile = '{path.with_name('m.jsonl')}'\n[defence]\nrule = 'median'\n"
        path.write_text(SMALL.replace("rounds = 3\n", kept) + metrics)
        return str(path)

    def rounds(file: str) -> list[dict[str, Any]]:
        lines = Path(file).with_name("m.jsonl").read_text().splitlines()
        return [{**json.loads(line), "seconds": None} for line in lines]

    whole, broken = written("whole"), written("broken")
    assert run(whole, "--json").exit_code == 0
    process = subprocess.run([sys.executable, "-c", KILLED, broken], capture_output=True, text=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(rounds(broken)) == 5
    refused = run(broken)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "holds rounds of an earlier run: resume that one" in refused.stderr
    result = run(broken, "--json", "--resume")
    assert result.exit_code == 0, result.output
    assert result.stderr == f"byzflow: resumed from {tmp_path / 'broken' / 'kept'}: 4 rounds are done\n"
    assert rounds(broken) == rounds(whole)  # digests and metrics
    assert json.loads(result.stdout)["rounds"] == 7
    for file in (tmp_path / "whole" / "ledger").glob("*.jsonl"):
        assert file.read_bytes() == (tmp_path / "broken" / "ledger" / file.name).read_bytes()
    checked = CliRunner().invoke(check, [str(tmp_path / "broken" / "ledger")])
    assert checked.exit_code == 0
    assert checked.stdout.startswith(
        "1 ledgers, 7 rounds:" if graph == "star" else "5 ledgers, 28 rounds:"
    )  # a liar's is empty
    again = run(broken, "--json", "--resume")  # all is done: told again, nothing is made or lost
    assert json.loads(again.stdout)["metrics"] == json.loads(result.stdout)["metrics"]
    assert rounds(broken) == rounds(whole)


def test_a_schema_of_one_s_own_runs_from_a_file(file: str) -> None:
    @schemas.schema.register("test_run_command_half")
    def half(given: config.Config) -> dict[str, int]:
        return {"half": given.nodes.count // 2}

    result = run(file, "--json", "--set", "federation.schema=test-run-command-half")
    assert json.loads(result.stdout)["result"] == {"half": 2}


def test_the_live_view_shows_rounds_curves_and_who_was_refused_and_why(file: str) -> None:
    found = config.load(file, ["federation.rounds=4", "federation.deadline=5"])
    federation = schemas.of(found)(found)
    federation.members[4].node = AttackNode("nan")
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(live_view(federation, 4, "star, median"))
    assert "round 0/4" in console.export_text()
    federation.train(3)
    console.print(live_view(federation, 4, "star, median"))
    text = console.export_text()
    assert "round 3/4" in text
    assert "accuracy" in text
    first = next(line for line in text.splitlines() if line.startswith("4 "))
    assert [word in first for word in ("Byzantine", "rejected", "3x", "NaN or Inf")] == [True] * 4


def test_a_curve_has_a_bar_a_value_and_no_more_than_its_width() -> None:
    assert curve([0.0, 0.5, 1.0]) == "▁▄█"
    assert curve([1.0, 1.0]) == "▄▄"
    assert curve([0.0, float("nan"), 1.0]) == "▁×█"
    assert curve([]) == ""
    assert len(curve([float(k) for k in range(1000)])) == 48
