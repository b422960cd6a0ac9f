"""`flwr run` on the example: Flower's own simulation with ten nodes, and with too few, offline."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from byzflow_flower import LocalGrid
from byzflow_flower.digits.client_app import app
from byzflow_flower.digits.server_app import federate
from byzflow_flower.digits.settings import Settings
from tests.flower_home import CAN_END, flower_home, flwr, last_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower_digits"
SETTINGS = Settings(aggregator="nnm | trimmed_mean", f=3, attack="alie(z=1.5)", num_server_rounds=3)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_END, reason="finds what Flower left running in /proc")]


@pytest.fixture(scope="module")
def home() -> Iterator[dict[str, str]]:
    with flower_home() as environment:
        yield environment


@pytest.fixture(scope="module")
def copy(home: dict[str, str]) -> Path:
    return Path(shutil.copytree(EXAMPLE, Path(home["FLWR_HOME"]) / "app", ignore=shutil.ignore_patterns(".*", "__*")))


def test_the_example_runs_in_flowers_simulation(home: dict[str, str], copy: Path) -> None:
    log = flwr(
        *("run", ".", "local", "--stream"),
        *("--federation-config", "num-supernodes=10 client-resources-num-cpus=1"),
        "--run-config",
        f"aggregator='{SETTINGS.aggregator}' f=3 attack='{SETTINGS.attack}' num-server-rounds=3",
        home=home,
        app=copy,
    )
    assert last_run(home, copy)["status"] == "finished:completed", log

    assert "configure_train: Sampled 10 nodes (out of 10)" in log
    for server_round in (1, 2, 3):
        assert f"aggregate_train: round {server_round}: nnm(f=3) | trimmed_mean(f=3) over 10 replies" in log
    assert len(re.findall(r"node \d+ weighs 0\.\d+", log)) == 30
    assert "rejected" not in log

    # The same model, data, clients and strategy as in one process, so the same figures; nodes answer in another
    # order, and sums may round otherwise.
    in_flower = [float(each) for each in re.findall(r"└──> MetricRecord: {'accuracy': ([0-9.]+)", log)]
    here: list[float] = []
    federate(LocalGrid(dict.fromkeys(range(10), app), run_config=SETTINGS.run_config()), SETTINGS, here.append)
    assert in_flower == pytest.approx(here[1:], abs=0.01)


def test_flowers_default_of_two_nodes_is_one_clear_line(home: dict[str, str], copy: Path) -> None:
    log = flwr("run", ".", "local", "--stream", home=home, app=copy)
    run = last_run(home, copy)
    line = (
        "nnm(f=3) | trimmed_mean(f=3) needs at least 7 senders, got 2; sample more nodes (fraction_train, "
        'min_train_nodes) or lower f; Flower simulates 2 nodes unless you add --federation-config "num-supernodes=10"'
    )
    assert (run["status"], run["status-details"].endswith(line)) == ("finished:failed", True), log
    assert log.count(line) == 1
    assert "Traceback" not in log
