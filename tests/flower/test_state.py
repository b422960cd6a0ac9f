"""What a rule remembers is carried over rounds, by node, and survives a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from byzflow.errors import ByzflowError
from byzflow.memory import ByNode
from byzflow_flower import Robust
from tests.flower.federation import CLIENTS, grid, initial, numpy, train
from tests.flower.test_robust import Losing

STATEFUL = [
    "centered_clipping(tau=0.5)",
    "momentum | trimmed_mean",
    "foolsgold",
    "clipped_clustering",
    "bucketing | median",
]


@pytest.mark.parametrize("spec", STATEFUL)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(spec: str, tmp_path: Path) -> None:
    whole = Robust(FedAvg(), spec, f=1)
    expected = numpy(train(whole, grid(), rounds=4, arrays=initial()).arrays)

    first = Robust(FedAvg(), spec, f=1)
    middle = train(first, grid(), rounds=2, arrays=initial()).arrays
    first.save(tmp_path / "rule.safetensors")
    second = Robust(FedAvg(), spec, f=1)
    second.resume(tmp_path / "rule.safetensors")
    got = numpy(train(second, grid(), rounds=2, arrays=middle).arrays)
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)
    assert [path.name for path in tmp_path.iterdir()] == ["rule.safetensors"]


@pytest.mark.parametrize("spec", STATEFUL[:4])
def test_without_its_state_it_goes_on_otherwise(spec: str) -> None:
    whole = numpy(train(Robust(FedAvg(), spec, f=1), grid(), rounds=3, arrays=initial()).arrays)
    middle = train(Robust(FedAvg(), spec, f=1), grid(), rounds=2, arrays=initial()).arrays
    cut = numpy(train(Robust(FedAvg(), spec, f=1), grid(), rounds=1, arrays=middle).arrays)
    assert any(not np.array_equal(whole[name], cut[name]) for name in whole)


def test_momentum_belongs_to_the_node_and_not_to_the_row() -> None:
    robust = Robust(FedAvg(), "momentum | median", f=1)
    nodes = sorted(grid().get_node_ids())
    train(robust, grid(), rounds=1, arrays=initial())
    before = dict(robust.state["momentum"])
    assert isinstance(robust.state["momentum"], ByNode)
    assert sorted(before) == nodes
    train(robust, Losing(grid(), {nodes[0]}), rounds=1, arrays=initial())
    after = robust.state["momentum"]
    assert sorted(after) == nodes
    assert after[nodes[0]] is before[nodes[0]]
    assert all(after[node] is not before[node] for node in nodes[1:])
    assert len(nodes) == CLIENTS


def test_a_file_that_is_no_state_or_another_rules(tmp_path: Path) -> None:
    robust = Robust(FedAvg(), "momentum | median", f=1)
    with pytest.raises(ByzflowError, match="is no saved state"):
        robust.resume(tmp_path / "nothing")
    (tmp_path / "noise").write_bytes(b"\xff" * 100)
    with pytest.raises(ByzflowError, match="is no saved state"):
        robust.resume(tmp_path / "noise")
    clipping = Robust(FedAvg(), "centered_clipping(tau=1)", f=1)
    train(clipping, grid(), rounds=1, arrays=initial())
    clipping.save(tmp_path / "center")
    with pytest.raises(ByzflowError, match="holds center, which momentum"):
        robust.resume(tmp_path / "center")
