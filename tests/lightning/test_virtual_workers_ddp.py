"""Virtual workers on each of two ranks: what they agree on goes into DDP's mean, or RobustDDP's rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from byzflow.errors import SpecError
from byzflow_lightning import VirtualWorkers
from tests.lightning.conftest import torchrun
from tests.lightning.small import fit, loader, make_module

ROOT = Path(__file__).parents[2]
Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks left what they found."""
    home = tmp_path_factory.mktemp("ranks")
    torchrun(home, 2, "tests.lightning.virtual_ranks", str(home))
    return home


@pytest.fixture(scope="module")
def told(folder: Path) -> Told:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["plain", "accumulation", "clipping", "static graph", "unused"])
def test_without_lies_it_is_ddp(told: Told, case: str) -> None:
    for each in told:
        assert each[case]["from ddp"] < 1e-6
        assert each[case]["apart"] == 0


def test_a_resumed_run_is_the_same_on_every_rank(told: Told) -> None:
    assert [each["resume"] for each in told] == [{"off": 0, "momenta off": 0, "apart": 0}] * 2


def test_the_checkpoint_holds_every_ranks_own_state(told: Told, folder: Path) -> None:
    checkpoint = torch.load(folder / "half.ckpt", weights_only=True)
    first, second = checkpoint["callbacks"]["VirtualWorkers"]["ranks"]
    assert first.keys() == second.keys() == {"momenta", "attack", "operator"}
    for name, rows in first["momenta"].items():
        assert not torch.equal(rows, second["momenta"][name])
    assert first["attack"] == second["attack"] == {"round": 10}
    assert len(second["operator"]["momentum"]) == 6
    assert not torch.equal(
        first["operator"]["momentum"][5]["net.0.weight"], second["operator"]["momentum"][5]["net.0.weight"]
    )
    with pytest.raises(SpecError, match=r"on 2 ranks, this run has n=6, momentum=0\.9 on 1"):
        fit(
            make_module(),
            loader(),
            VirtualWorkers(6, 2, "gaussian", "momentum | trimmed_mean"),
            ckpt_path=folder / "half.ckpt",
        )


def test_the_aggregate_of_each_rank_goes_into_the_rule_of_robust_ddp(told: Told) -> None:
    pytest.importorskip("byzflow_lightning.robust_ddp")
    for each in told:
        assert each["RobustDDP"]["from ddp"] < 1e-6
        assert each["RobustDDP"]["apart"] == 0
