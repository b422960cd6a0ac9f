"""The command line: listings, JSON, and one line with exit code 2 for what the user got wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

import byzflow
from byzflow import health
from byzflow.cli import group


def run(*args: str) -> Result:
    return CliRunner().invoke(group, list(args), env={"COLUMNS": "100"})


def test_list_names_everything_installed() -> None:
    result = run("list")
    assert result.exit_code == 0
    for entry in byzflow.installed().of_kind():
        assert entry.operator.name in result.stdout


def test_theory_is_readable_in_80_columns() -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(group, ["theory", "--n", "20", "--f", "4"])
    lines = result.stdout.splitlines()
    assert lines[0].startswith("n = 20, f = 4; no rule has kappa below 0.333")
    assert lines[1].split("  ")[0] == "rule"
    for heading in ("valid", "breakdown", "kappa <=", "with nnm", "lambda <=", "note"):
        assert heading in lines[1]
    assert any(line.startswith("winsorized_mean") for line in lines)
    assert lines[-3].startswith("breakdown: ")
    assert "no rule bears half of the rows" in run("theory", "--n", "8", "--f", "4", "median").stdout


def test_list_and_show_are_readable_in_80_columns() -> None:
    runner = CliRunner(env={"COLUMNS": "80"})
    for kind in ("aggregators", "pre-aggregators", "attacks"):
        lines = runner.invoke(group, ["list", kind]).stdout.splitlines()
        assert "what it does" in lines[0]
        assert max(map(len, lines)) <= 80
        assert len(lines) < 5 * len(byzflow.installed().of_kind(kind.rstrip("s")))
    text = runner.invoke(group, ["show", "alie"]).stdout.splitlines()
    paragraph = text[2 : text.index("", 2)]
    assert all(len(line) > 60 for line in paragraph[:-1])


@pytest.mark.parametrize("kind", ["attacks", "attack", "pre-aggregators", "pre_aggregators", "aggregators"])
def test_list_one_kind_as_json(kind: str) -> None:
    found = json.loads(run("list", kind, "--json").stdout)
    wanted = kind.replace("_", "-").rstrip("s")
    assert {one["name"] for one in found} == {e.operator.name for e in byzflow.installed().of_kind(wanted)}
    assert {one["kind"] for one in found} == {wanted}
    assert all(one["summary"] and one["plugin"] and one["package"] for one in found)


def test_show_as_text_and_json() -> None:
    text = run("show", "multi-krum").stdout
    for words in ("multi_krum", "mkrum", "an int >= 0", "required", "n-f-2", "1703.02757", "byzflow_aggregators"):
        assert words in text
    shown = json.loads(run("show", "mkrum", "--json").stdout)
    assert shown["needs"].startswith("n >= 2f + 3")
    assert [p["name"] for p in shown["parameters"]] == ["f", "neighbors", "power", "strict", "m"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["show", "krumm"], "unknown operator 'krumm'; did you mean krum"),
        (["list", "atacks"], "unknown kind 'atacks'; did you mean attacks?"),
        (["lst"], "no such command 'lst'; did you mean list?"),
        (["show", "nothing_like_it"], "`byzflow list` shows what there is"),
        (["show"], "byzflow show: Missing argument 'NAME'. Try `byzflow show --help`."),
        (["list", "--jsn"], "Did you mean '--json'? Try `byzflow list --help`."),
        (["--nope"], "byzflow: No such option '--nope'. Try `byzflow --help`."),
        (["theory", "--n", "ten", "--f", "1"], "'ten' is not an integer."),
        (["actor-server", "--keep", "x"], "'x' is not a valid number."),
        (["actor-server", "--keep", "nan"], "--keep must be a finite number of seconds, got nan"),
        (["actor-server", "--listen", "tcp://192.0.2.1:7001", "--plain"], "give an address of this host"),
        (["new", "flower_app"], "no such command 'flower_app'; did you mean flower-app? Try `byzflow new --help`."),
        (["keys", "nw"], "byzflow keys: No such command 'nw'."),
        (["keys", "new", "me", "--dir", __file__], "cannot be written to"),
        (["keys", "list", "--dir", __file__], "is no folder of keys: name one by --dir"),
        (["study", "--rule", "nnm"], "nnm is no aggregation"),
        (["study", "--rule", "alie"], "alie is no aggregation"),
        (["doctor", "--keys", "keys"], "--keys is for --connect"),
        (["doctor", "--connect", "http://here:1"], "no address of an actor server; write tcp://host:7000"),
        (["doctor", "--connect", "tcp://here"], "no address; write tcp://host:7000"),
        (["run", "nothing"], "nothing cannot be read: No such file"),
        (["node", "--config", "x.yaml", "--role", "peer"], "--role peer needs --node-id"),
    ],
)
@pytest.mark.filterwarnings("ignore:the link to 192.0.2.1")
def test_wrong_input_is_one_line_and_exit_code_2(args: list[str], words: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_a_warning_is_one_line_without_a_place_in_the_source() -> None:
    command = [sys.executable, "-c", "from byzflow.cli import main; main()"]
    options = ["actor-server", "--listen", "tcp://192.0.2.1:7001", "--plain"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert warning == "byzflow: warning: the link to 192.0.2.1 is neither encrypted nor authenticated"
    assert error.startswith("byzflow: cannot listen")


@pytest.mark.parametrize("args", [[], ["keys"], ["new"]])
def test_a_group_alone_shows_its_help(args: list[str]) -> None:
    result = run(*args)
    assert "Commands:" in result.stderr
    assert "..." not in result.stderr.partition("Commands:")[2]  # every line is a whole one


def test_doctor_finds_this_installation_whole() -> None:
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    assert report["healthy"], report
    assert result.exit_code == 0
    assert run("doctor").exit_code == 0


def test_doctor_exits_1_on_a_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "__version__", "0.0.0")
    result = run("doctor", "--json")
    assert result.exit_code == 1
    broken = [check for check in json.loads(result.stdout)["checks"] if check["state"] == "broken"]
    assert [check["name"] for check in broken] == ["byzflow"]
    assert "install again" in broken[0]["detail"]
    assert "broken" in run("doctor").stdout


def test_version() -> None:
    assert byzflow.__version__ in run("--version").stdout
