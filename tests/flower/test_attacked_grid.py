"""Omniscient attackers on a grid: they take FedAvg over and not `Robust`, and touch nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg, FedMedian

import byzflow
from byzflow.errors import SpecError
from byzflow_flower import AttackedGrid, Robust, first_partitions, reveal_partition
from tests.flower.federation import CLIENTS, client, distance, grid, initial, numpy, record, reply, target, train

ROUNDS = 6


class Listening(FedAvg):
    """Keeps the replies of each round, by node."""

    def __init__(self, **options):
        super().__init__(**options)
        self.heard = []

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.heard.append({reply.metadata.src_node_id: reply for reply in replies if reply.has_content()})
        return super().aggregate_train(server_round, replies)


def arrays(reply: Message) -> dict[str, np.ndarray]:
    return numpy(reply.content["arrays"])


@pytest.mark.parametrize("attack", ["sign_flip(scale=8)", "ipm(tau=8)"])
def test_it_takes_fedavg_over_and_not_robust(attack: str) -> None:
    free = distance(train(FedAvg(), grid(), ROUNDS).arrays)
    plain = distance(train(FedAvg(), AttackedGrid(grid(), attack, f=2), ROUNDS).arrays)
    robust = Robust(FedAvg(), "nnm | trimmed_mean", f=2)
    survived = distance(train(robust, AttackedGrid(grid(), attack, f=2), ROUNDS).arrays)
    assert free < 0.3
    assert plain > distance(initial())  # worse than no training at all
    assert survived < free + 0.2
    assert not any(each.rejected for each in robust.audit)  # well-formed lies: the rule, not the reader, bears them


def test_flowers_own_strategies_can_be_attacked() -> None:
    attacked = train(FedMedian(), AttackedGrid(grid(), "sign_flip(scale=8)", f=3), ROUNDS)
    assert distance(attacked.arrays) > 1.5 * distance(train(FedMedian(), grid(), ROUNDS).arrays)


def test_attackers_send_what_byzflow_attack_makes_of_the_honest_updates() -> None:
    strategy = Listening()
    start = {name: values + 0.25 for name, values in numpy(initial()).items()}
    train(strategy, AttackedGrid(grid(), "alie", f=2), 1, record(start))
    heard = strategy.heard[0]
    honest = [{k: v - start[k] for k, v in arrays(heard[node]).items()} for node in range(102, 107)]
    for node, lie in zip((100, 101), byzflow.attack("alie", honest, f=2), strict=True):
        for name, values in arrays(heard[node]).items():
            np.testing.assert_allclose(values, start[name] + lie[name], rtol=0, atol=1e-6)
    assert heard[100].content["metrics"]["num-examples"] == 10
    losses = {node: reply.content["metrics"]["loss"] for node, reply in heard.items()}
    assert len(set(losses.values())) == CLIENTS  # each keeps its own


def test_only_the_attackers_asked_in_a_round_attack_in_it() -> None:
    strategy = Listening(fraction_train=0.5, fraction_evaluate=0.0)
    attacked = AttackedGrid(grid(8), "nan", nodes=[101, 103, 105])
    train(strategy, attacked, 1)
    lying = {node for node, each in strategy.heard[0].items() if np.isnan(arrays(each)["layer.bias"]).all()}
    assert lying == strategy.heard[0].keys() & {101, 103, 105}
    assert len(strategy.heard[0]) == 4
    assert lying


def test_evaluation_is_left_alone() -> None:
    robust = Robust(FedAvg(), "median", f=2)
    assert train(robust, AttackedGrid(grid(), "nan", f=2), 2).evaluate_metrics_clientapp[2]["accuracy"] == 0.53
    assert not robust.evaluate_audit[0].rejected


def test_attackers_are_the_holders_of_the_first_partitions() -> None:
    app = client(mods=[reveal_partition])
    local = grid(hostile=dict.fromkeys(range(CLIENTS), app))
    for node, context in local.contexts.items():  # partitions in another order than node ids
        context.node_config["partition-id"] = 106 - node
    robust = Robust(FedAvg(), "median", f=2)
    train(robust, AttackedGrid(local, "nan", nodes=first_partitions(2)), 1)
    assert [each.node_id for each in robust.audit[0].rejected] == [105, 106]


def test_partitions_that_are_not_revealed_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"node 10\d does not say which partition it holds: give its app mods="):
        train(FedAvg(), AttackedGrid(grid(), "nan", nodes=first_partitions(2)), 1)


def test_an_attackers_broken_client_does_not_spare_us_the_attack() -> None:
    def breaks(message, arrays, metrics):
        raise ValueError

    strategy = Listening()
    train(strategy, AttackedGrid(grid(hostile={0: client(breaks)}), "sign_flip", f=1), 1)
    honest = np.mean([arrays(strategy.heard[0][node])["layer.bias"] for node in range(101, 107)], axis=0)
    np.testing.assert_allclose(arrays(strategy.heard[0][100])["layer.bias"], -honest, atol=1e-6)


def test_broken_honest_replies_are_not_attacked_with() -> None:
    nan = client(lambda m, a, s: reply(m, {name: v * np.nan for name, v in a.items()}, s))
    strategy = Listening()
    train(strategy, AttackedGrid(grid(hostile={5: nan}), "sign_flip", f=1), 1)
    assert np.isfinite(arrays(strategy.heard[0][100])["layer.bias"]).all()


def test_there_is_no_attack_without_an_honest_reply_to_build_it_on() -> None:
    nan = client(lambda m, a, s: reply(m, {name: v * np.nan for name, v in a.items()}, s))
    strategy = Listening()
    train(strategy, AttackedGrid(grid(hostile=dict.fromkeys(range(1, CLIENTS), nan)), "sign_flip", f=1), 1)
    assert (arrays(strategy.heard[0][100])["layer.bias"] == numpy(train_alone())["layer.bias"]).all()


def train_alone():
    strategy = Listening(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
    return train(strategy, grid(1), 1).arrays


def test_noise_differs_between_rounds_and_repeats_between_runs() -> None:
    def noise() -> list[np.ndarray]:
        strategy, attacked = Listening(), AttackedGrid(grid(), "gaussian", f=1)
        for _ in range(2):  # from the same model, so that only the noise can differ
            train(strategy, attacked, 1)
        return [arrays(each[100])["layer.bias"] for each in strategy.heard]

    one, other = noise(), noise()
    np.testing.assert_array_equal(one, other)
    assert np.abs(one[0] - one[1]).max() > 0.01


# -- attacks that know the defence, and those that use what their own clients computed


def test_an_adaptive_attack_is_fitted_to_the_strategy_that_is_attacked() -> None:
    found = []
    for against in ("mean", None):  # None: the strategy itself
        robust = Robust(FedAvg(), "krum", f=2)
        attacked = AttackedGrid(grid(), "opt_ipm", f=2, against=against or robust)
        train(robust, attacked, ROUNDS)
        found.append(sum(sum(each.weights[node] for node in (100, 101)) for each in robust.audit))
    assert found[0] == 0  # far beyond what krum picks
    assert found[1] >= 3  # as far as krum picks it


def test_an_adaptive_attack_knows_what_the_strategy_remembers() -> None:
    robust = Robust(FedAvg(), "momentum | trimmed_mean", f=2)
    seen = []

    class Spy(AttackedGrid):
        def send_and_receive(self, messages, *, timeout=None):
            seen.append(dict(robust.state))
            return super().send_and_receive(messages, timeout=timeout)

    train(robust, Spy(grid(), "opt_alie", f=2, against=robust), 3)
    assert "momentum" in seen[-1]
    assert not any(each.kept_model for each in robust.audit)


@pytest.mark.parametrize("broken", [1, 3])
def test_an_adaptive_attack_follows_the_defence_when_honest_replies_are_malformed(broken: int) -> None:
    nan = client(lambda m, a, s: reply(m, {name: v * np.nan for name, v in a.items()}, s))
    robust = Robust(FedAvg(), "nnm | median", f=3)
    hostile = dict.fromkeys(range(CLIENTS - broken, CLIENTS), nan)
    train(robust, AttackedGrid(grid(hostile=hostile), "opt_alie", f=2, against=robust), 2)
    assert {each.operator for each in robust.audit} == {f"nnm(f={max(0, 3 - broken)}) | median(f={max(0, 3 - broken)})"}


def test_model_replacement_is_made_from_the_attackers_own_updates() -> None:
    poisoned = client(lambda m, a, s: reply(m, {name: values + 7 for name, values in a.items()}, s))
    strategy = Listening(fraction_evaluate=0.0)
    result = train(strategy, AttackedGrid(grid(hostile={0: poisoned}), "model_replacement", f=1), 1)
    honest = np.mean([arrays(strategy.heard[0][node])["layer.bias"] for node in range(101, 107)], axis=0)
    own = target(0)["layer.bias"] / 2 + 7
    np.testing.assert_allclose(numpy(result.arrays)["layer.bias"], own + honest * 6 / 7, atol=1e-5)


@pytest.mark.parametrize("attack", ["opt_alie", "dyn_opt", "hidden_vulnerability"])
def test_an_adaptive_attack_without_a_defence_is_an_error_at_once(attack: str) -> None:
    with pytest.raises(SpecError, match="is fitted to a defence: pass against="):
        AttackedGrid(grid(), attack, f=1)


def test_other_attacks_make_no_use_of_the_defence() -> None:
    train(FedAvg(), AttackedGrid(grid(), "sign_flip", f=1, against="median"), 1)


@pytest.mark.parametrize(
    ("attack", "options", "error", "words"),
    [
        ("median", {"f": 1}, SpecError, "is no attack"),
        ("sing_flip", {"f": 1}, SpecError, "did you mean sign_flip"),
        ("alie", {}, ValueError, "give either f"),
        ("alie", {"f": 1, "nodes": [3]}, ValueError, "give either f"),
    ],
)
def test_wrong_options(attack, options, error, words) -> None:
    with pytest.raises(error, match=words):
        AttackedGrid(grid(), attack, **options)


def test_the_honest_rows_are_in_the_order_of_the_nodes() -> None:
    strategy = Listening()  # which samples nodes in an order of its own
    train(strategy, AttackedGrid(grid(), "mimic", f=1), 3)
    for heard in strategy.heard:
        np.testing.assert_allclose(arrays(heard[100])["layer.bias"], arrays(heard[101])["layer.bias"], atol=1e-6)


def test_no_attackers() -> None:
    found, free = train(FedAvg(), AttackedGrid(grid(), "nan", f=0), 2), train(FedAvg(), grid(), 2)
    for name, values in numpy(free.arrays).items():
        np.testing.assert_allclose(numpy(found.arrays)[name], values, rtol=0, atol=1e-6)
