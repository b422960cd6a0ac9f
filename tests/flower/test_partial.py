"""Adapters and other parts of models: sent alone, or sent back alone."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy

from byzflow_flower import Robust
from tests.flower.federation import CLIENTS, client, grid, initial, numpy, record, reply, target, train

BASE = {"base.weight": np.arange(6, dtype=np.float32), "base.count": np.array(2**40, np.int64)}
ADAPTERS = tuple(target())  # what the federation's clients train


def adapters_alone(message, arrays, metrics):
    return reply(message, {name: arrays[name] for name in ADAPTERS}, metrics)


EVERYONE = dict.fromkeys(range(CLIENTS), client(adapters_alone))


@pytest.mark.parametrize("strategy", [FedAvg, lambda: FedAdam(eta=0.1)], ids=["fedavg", "fedadam"])
def test_a_part_is_sent_back_and_the_rest_of_the_model_stays(strategy) -> None:
    robust = Robust(strategy(), "nnm | trimmed_mean", f=2, trained=("layer.*",))
    result = train(robust, grid(hostile=EVERYONE), 3, initial(**BASE))
    adapters = train(Robust(strategy(), "nnm | trimmed_mean", f=2), grid(), 3)  # as if there were no base
    found = numpy(result.arrays)
    assert list(found) == list(initial(**BASE))
    for name, values in BASE.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    for name in ADAPTERS:
        np.testing.assert_array_equal(found[name], numpy(adapters.arrays)[name])
    assert all(not each.rejected and not each.kept_model for each in robust.audit)


def test_a_client_that_sends_back_the_frozen_part_too_is_rejected() -> None:
    robust = Robust(FedAvg(), "median", f=2, trained=("layer.*",))
    result = train(robust, grid(hostile=EVERYONE | {3: client()}), 2, initial(**BASE))
    assert [each.node_id for each in robust.audit[1].rejected] == [103]
    assert "extra 'base.count', 'base.weight'" in robust.audit[1].rejected[0].reason
    np.testing.assert_array_equal(numpy(result.arrays)["base.weight"], BASE["base.weight"])


def test_without_the_option_a_part_is_malformed_and_the_model_kept_whole() -> None:
    robust = Robust(FedAvg(), "median", f=2)
    result = train(robust, grid(hostile=EVERYONE), 1, initial(**BASE))
    assert "missing 'base.count', 'base.weight'" in robust.audit[0].rejected[0].reason
    assert robust.audit[0].kept_model
    assert numpy(result.arrays).keys() == numpy(initial(**BASE)).keys()
    partial = Robust(FedAvg(), "median", f=2, trained=("layer.*",))
    nobody = train(partial, grid(hostile=dict.fromkeys(range(CLIENTS), client())), 1, initial(**BASE))
    np.testing.assert_array_equal(numpy(nobody.arrays)["base.weight"], BASE["base.weight"])


def test_adapters_are_named_by_patterns() -> None:
    """As PEFT names them: low-rank factors beside the weights that they adapt."""
    lora = {"q.lora_A.weight": np.full((2, 8), 0.5, np.float32), "q.lora_B.weight": np.zeros((8, 2), np.float32)}
    everyone = dict.fromkeys(range(CLIENTS), client(lambda m, a, s: reply(m, moved(m, lora), s)))

    def moved(message, like):
        sent = numpy(message.content["arrays"])
        return {name: sent[name] + (1 - sent[name]) / 2 for name in like}

    start = record(lora | dict(numpy(initial())))
    with pytest.raises(ValueError, match="names none of the arrays sent"):
        train(Robust(FedAvg(), "median", trained=("no*",)), grid(hostile=everyone), 1, start)
    robust = Robust(FedAvg(), "nnm | median", f=2, trained=("*lora_*",))
    found = numpy(train(robust, grid(hostile=everyone), 4, start).arrays)
    np.testing.assert_allclose(found["q.lora_B.weight"], 1 - 0.5**4, atol=1e-6)
    np.testing.assert_array_equal(found["layer.bias"], np.zeros(4))


def test_an_app_that_sends_and_gets_adapters_resumes_where_it_stopped(tmp_path) -> None:
    def made() -> Robust:
        return Robust(FedAvg(), "momentum | trimmed_mean", f=2, trained=("layer.*",), exclude_after=3)

    whole = numpy(train(made(), grid(hostile=EVERYONE), 4, initial(**BASE)).arrays)
    first, second = made(), made()
    middle = train(first, grid(hostile=EVERYONE), 2, initial(**BASE)).arrays
    first.save(tmp_path / "state.safetensors")
    second.resume(tmp_path / "state.safetensors")
    resumed = numpy(train(second, grid(hostile=EVERYONE), 2, middle).arrays)
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values)


def test_arrays_that_a_strategy_adds_are_kept() -> None:
    class Adding(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            arrays.update(record({"more": np.ones(2, np.float32)}))
            return arrays, metrics or MetricRecord()

    strategy: Strategy = Robust(Adding(), "median", f=2, trained=("layer.*",))
    assert "more" in train(strategy, grid(hostile=EVERYONE), 1, initial(**BASE)).arrays
