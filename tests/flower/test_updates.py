"""Updates are formed a tile at a time: right for every dtype and rule, without a second copy of the replies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg

import byzflow
from byzflow_flower import Robust
from byzflow_flower.compat import become_server
from tests.flower.federation import numpy, record, reply

ROOT = Path(__file__).parents[2]
NODES = [11, 12, 13, 14, 15, 16, 17]
SPECS = ["mean", "trimmed_mean(f=2)", "krum(f=2)", "cge(f=2)", "centered_clipping(tau=0.5)", "nnm(f=2) | median"]


class Nodes:
    """As much of a grid as choosing nodes needs."""

    def get_node_ids(self) -> list[int]:
        return NODES


def models(dtype: type) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """A model, and one a client that lies a small step from it."""
    rng = np.random.default_rng(0)
    shapes = {"layer.weight": (40, 30), "layer.bias": (30,)}
    sent = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    clients = [{n: (v + 0.01 * rng.normal(size=v.shape)).astype(dtype) for n, v in sent.items()} for _ in NODES]
    return sent, clients


def one_round(
    strategy: Robust, sent: dict[str, np.ndarray], clients: list[dict[str, np.ndarray]]
) -> tuple[ArrayRecord, MetricRecord]:
    become_server()
    asked = list(strategy.configure_train(1, record(sent), ConfigRecord(), Nodes()))
    answers = {message.metadata.dst_node_id: message for message in asked}
    replies = [reply(answers[node], arrays, {"num-examples": 5}) for node, arrays in zip(NODES, clients, strict=True)]
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert metrics is not None
    return arrays, metrics


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("spec", SPECS)
def test_the_model_is_what_the_rule_makes_of_the_differences(spec: str, dtype: type) -> None:
    sent, clients = models(dtype)
    found = numpy(one_round(Robust(FedAvg(), spec), sent, clients)[0])
    wide = [{name: v.astype(np.float64) - sent[name] for name, v in arrays.items()} for arrays in clients]
    update = byzflow.aggregate(spec, wide)
    for name, values in sent.items():
        assert found[name].dtype == dtype
        rounding = 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(found[name], values + update[name], rtol=rounding, atol=rounding)


def test_numbers_whose_difference_overflows_are_named() -> None:
    sent, clients = models(np.float32)
    sent["layer.bias"][3] = -3e38
    for arrays in clients:
        arrays["layer.bias"][3] = -3e38
    clients[2]["layer.bias"][3] = 3e38
    strategy = Robust(FedAvg(), "median", f=1)
    found = numpy(one_round(strategy, sent, clients)[0])
    assert [(r.node_id, r.reason) for r in strategy.audit[0].rejected] == [
        (NODES[2], "array 'layer.bias' holds 1 NaN or Inf")
    ]
    assert np.isfinite(found["layer.weight"]).all()


def test_numbers_whose_squares_overflow_count() -> None:
    sent, clients = models(np.float32)
    clients[2]["layer.bias"][:] = 1e30
    strategy = Robust(FedAvg(), "krum", f=1)
    _, metrics = one_round(strategy, sent, clients)
    assert not strategy.audit[0].rejected
    assert metrics[f"robust-weight/{NODES[2]}"] == 0


def test_a_model_that_is_lost_already_is_kept_with_a_reason() -> None:
    sent, clients = models(np.float32)
    sent["layer.bias"][3] = np.nan
    strategy = Robust(FedAvg(), "median", f=1)
    one_round(strategy, sent, clients)
    assert strategy.audit[0].kept_model == "no reply counts"
    assert {each.reason for each in strategy.audit[0].rejected} == {"array 'layer.bias' holds 1 NaN or Inf"}


PEAK = """
import sys
from benchmarks.flower_step import build
from benchmarks.case import rows_of, small
from benchmarks.memory import peak
from benchmarks.workloads import Workload
workload = Workload("flower", sys.argv[1], sys.argv[1], 10, 2_000_000, 2)
first, given = build(small(workload), "byzflow", rows_of(small(workload)))
first(given)
rows = rows_of(workload)
run, given = build(workload, "byzflow", rows)
print(peak(lambda: run(given))[2])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be measured on Linux alone")
@pytest.mark.parametrize("rule", ["trimmed_mean", "krum", "nnm | median"])
def test_a_round_needs_a_few_models_besides_the_replies(rule: str) -> None:
    command = [sys.executable, "-c", PEAK, rule]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    model = 4 * 2_000_000
    assert model < int(done.stdout) < 4 * model  # the updates alone would be 10
