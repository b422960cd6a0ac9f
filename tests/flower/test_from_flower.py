"""The claims of docs/from_flower.md that no other test here makes."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import Bulyan, FedAvg, FedTrimmedAvg, Krum, MultiKrum
from flwr.serverapp.strategy.multikrum import compute_distances, select_multikrum

from byzflow.errors import NotEnoughSenders
from byzflow_flower import Robust
from tests.flower.federation import CLIENTS, client, distance, grid, initial, numpy, record, reply, target, train
from tests.flower.test_flowers_own_rules import chosen_by_flower, chosen_by_us


def far(message, arrays, metrics):
    return reply(message, {name: values + 1000 for name, values in arrays.items()}, metrics)


def claims(message, arrays, metrics):
    return reply(message, arrays, metrics | {"num-examples": 10**12})


def test_trimmed_avg_of_flowers_trims_nobody_of_four() -> None:
    """beta = 0.2 of 4 is 0 after rounding down: one liar owns the mean."""
    hostile = {0: client(far)}
    assert distance(train(FedTrimmedAvg(), grid(4, hostile), 1).arrays) > 500
    assert distance(train(Robust(FedAvg(), "trimmed_mean", f=1), grid(4, hostile), 3).arrays) < 1


def test_multi_krum_of_flowers_weighs_by_what_clients_claim() -> None:
    best = chosen_by_flower({}, initial())
    hostile = {best: client(claims)}
    own = {name: values / 2 for name, values in target(best).items()}
    theirs = train(MultiKrum(num_malicious_nodes=1, num_nodes_to_select=5), grid(hostile=hostile), 1).arrays
    for name, values in own.items():
        np.testing.assert_allclose(numpy(theirs)[name], values, atol=1e-5)  # it owns the model
    robust = Robust(FedAvg(), "multi_krum", f=1)
    train(robust, grid(hostile=hostile), 1)
    weights = [weight for weight in robust.audit[0].weights.values() if weight]
    assert weights == pytest.approx([1 / len(weights)] * len(weights))


def test_bulyan_of_flowers_selects_once() -> None:
    """The paper's Bulyan runs Krum again and again, each time without the one that was chosen before."""
    calls = []

    def counting(contents, malicious, keep):
        calls.append((len(contents), keep))
        return select_multikrum(contents, malicious, keep)

    colluding = {name: (values / 2 + 0.05).astype(np.float32) for name, values in target().items()}
    hostile = dict.fromkeys(range(2), client(lambda m, a, s: reply(m, colluding, s)))
    theirs = train(Bulyan(num_malicious_nodes=2, selection_rule=counting), grid(11, hostile), 1).arrays
    assert calls == [(11, 7)]
    ours = train(Robust(FedAvg(), "bulyan", f=2), grid(11, hostile), 1).arrays
    assert max(np.abs(numpy(ours)[name] - values).max() for name, values in numpy(theirs).items()) > 0.01


def test_bulyan_of_flowers_keeps_the_model_for_ever_with_too_few_clients() -> None:
    assert not train(Bulyan(num_malicious_nodes=2), grid(), 3).arrays
    with pytest.raises(NotEnoughSenders, match=r"bulyan\(f=2\) needs at least 11 senders, got 7"):
        train(Robust(FedAvg(), "bulyan", f=2), grid(), 3)


def test_krum_of_flowers_does_not_compare_n_with_f() -> None:
    assert train(Krum(num_malicious_nodes=4), grid(5), 1).arrays
    with pytest.raises(NotEnoughSenders, match=r"krum\(f=4\) needs at least 11 senders, got 5"):
        train(Robust(FedAvg(), "krum", f=4), grid(5), 1)


def test_krum_of_flowers_loses_its_distances_on_weights_far_from_0() -> None:
    offset = {name: values + 3000 for name, values in target().items()}
    near = [record({k: v + target(i)[k] - target()[k] for k, v in offset.items()}) for i in range(CLIENTS)]
    theirs = compute_distances(near)
    exact = np.stack([np.concatenate([v.astype(float).ravel() for v in numpy(each).values()]) for each in near])
    true = np.square(exact[:, None] - exact[None]).sum(-1)
    assert np.abs(theirs - true).max() > 10 * true.max()
    start = record(numpy(initial()) | {name: values + 3000 for name, values in numpy(initial()).items()})
    assert chosen_by_us({}, start) == chosen_by_us({}, initial())
