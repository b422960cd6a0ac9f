"""`byzflow new flower-app`: what it writes runs, and a wrong name is one line."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from flwr.app import Context, RecordDict

from byzflow.cli import group
from byzflow.errors import ByzflowError
from byzflow_flower import LocalGrid
from byzflow_flower.new_app import write
from tests.flower_home import CAN_END, flower_home, flwr, last_run


def new(*arguments: str) -> Result:
    """`byzflow new flower-app ARGUMENTS`, in this process."""
    return CliRunner().invoke(group, ["new", "flower-app", *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_writes_flowers_layout_under_the_name_given(folder: Path) -> None:
    done = new("My_first-app")
    assert done.exit_code == 0, done.output
    assert "cd My_first-app" in done.stdout
    app = folder / "My_first-app"
    modules = [f"my_first_app/{each}.py" for each in ("__init__", "client_app", "server_app", "task")]
    assert sorted(str(each.relative_to(app)) for each in app.rglob("*") if each.is_file()) == sorted(
        ["README.md", "pyproject.toml", *modules]
    )
    for file in app.rglob("*.*"):
        assert "byzflow-app" not in file.read_text()
        assert "byzflow_app" not in file.read_text()
    project = tomllib.loads((app / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-first-app"
    assert project["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "my_first_app.server_app:app",
        "clientapp": "my_first_app.client_app:app",
    }


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "", "1st", "a--b", "-a", "a b", "ä", "a.b", "a" * 61, "torch", "Json", "class"]
)
def test_a_bad_name_is_one_line_and_writes_nothing(name: str, folder: Path) -> None:
    done = new("--", name)
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("byzflow: ")
    assert not list(folder.iterdir())


def test_what_exists_is_left_alone(folder: Path) -> None:
    (folder / "mine").write_text("precious")
    done = new("mine")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "byzflow: mine exists already; choose another name, or move it away\n"
    assert (folder / "mine").read_text() == "precious"
    with pytest.raises(ByzflowError, match="cannot write"):
        write("app", folder / "nowhere")


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a generated package that can be imported."""
    write("generated-app", tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "generated-app")
    yield "generated_app"
    for module in [name for name in sys.modules if name.partition(".")[0] == "generated_app"]:
        del sys.modules[module]


def test_the_app_learns_while_two_of_seven_lie(
    generated: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tomllib.loads((tmp_path / "generated-app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config |= {"attack": "sign_flip", "num-server-rounds": 2, "learning-rate": 0.2}
    torch.manual_seed(0)
    client = import_module(f"{generated}.client_app").app
    server = import_module(f"{generated}.server_app")
    grid = LocalGrid(dict.fromkeys(range(7), client), run_config=config)
    with caplog.at_level("INFO", "flwr"):
        server.app(grid, Context(1, 1, {}, RecordDict(), config))
    accuracies = [record.args["accuracy"] for record in caplog.records if "└──> MetricRecord" in record.msg]
    assert len(accuracies) == 2
    assert accuracies[-1] > 0.4


@pytest.mark.slow
@pytest.mark.skipif(not CAN_END, reason="finds what Flower left running in /proc")
def test_flwr_run_runs_it(tmp_path: Path) -> None:
    write("generated-app", tmp_path)
    app = tmp_path / "generated-app"
    with flower_home() as home:
        log = flwr(
            *("run", ".", "local", "--stream"),
            *("--federation-config", "num-supernodes=5 client-resources-num-cpus=1"),
            *("--run-config", "attack='wrong_keys' num-server-rounds=2"),
            home=home,
            app=app,
        )
        assert last_run(home, app)["status"] == "finished:completed", log
    assert log.count("rejected: other keys than sent") == 4
    assert "over 3 replies" in log
