"""examples/flower_lightning: a Flower app around a LightningModule, in one process and by `flwr run`."""

from __future__ import annotations

import shutil
import tomllib
import warnings
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Flower's own dependencies deprecate
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    from byzflow_flower import LocalGrid, Robust
    from tests.flower_home import CAN_END, flower_home, flwr, last_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower_lightning"
IGNORED = shutil.ignore_patterns(".*", "__pycache__")


def test_it_learns_while_three_of_ten_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from digits_lightning.client_app import app
        from digits_lightning.task import Digits
    config = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    torch.manual_seed(0)
    initial = ArrayRecord(Digits(lr=0.1).state_dict())

    def accuracy(spec: str, f: int, attack: str) -> float:
        grid = LocalGrid(dict.fromkeys(range(1, 11), app), run_config={**config, "attack": attack})
        result = Robust(FedAvg(), spec, f=f).start(grid=grid, initial_arrays=initial, num_rounds=6)
        return float(result.evaluate_metrics_clientapp[6]["accuracy"])  # type: ignore[arg-type]

    found = {attack: accuracy("nnm | trimmed_mean", 3, attack) for attack in ("sign_flip", "label-flip", "gaussian")}
    undefended = accuracy("mean", 0, "gaussian")
    print(found, undefended)
    assert min(found.values()) > 0.7
    assert undefended < 0.6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not CAN_END, reason="finds what Flower left running in /proc")
def test_it_runs_in_flowers_simulation() -> None:
    with flower_home() as home:
        copy = Path(shutil.copytree(EXAMPLE, Path(home["FLWR_HOME"]) / "app", ignore=IGNORED))
        log = flwr(
            *("run", ".", "local", "--stream"),
            *("--federation-config", "num-supernodes=5 client-resources-num-cpus=1"),
            *("--run-config", "f=1 attack='sign_flip' num-server-rounds=2"),
            home=home,
            app=copy,
        )
        assert last_run(home, copy)["status"] == "finished:completed", log
        for server_round in (1, 2):
            assert f"aggregate_train: round {server_round}: nnm(f=1) | trimmed_mean(f=1) over 5 replies" in log
        assert "rejected" not in log
        assert "lightning_logs" not in {each.name for each in copy.rglob("*")}
