"""Client mods: each lie is what it says, told by the Byzantine partitions only, and while training only."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

import byzflow
from byzflow.errors import SpecError
from byzflow_flower import AttackedGrid, Robust, byzantine, mods, wants_backdoor, wants_label_flip
from tests.flower import federation
from tests.flower.federation import grid, numpy, record

SENT = {"w": np.full(3, 2.0, np.float32), "steps": np.array([4, 5])}
TRAINED = {"w": np.array([2.5, 1.0, 2.0], np.float32), "steps": np.array([6, 7])}


def app(*chain, flips: list[bool] | None = None) -> ClientApp:
    found = ClientApp(mods=None)

    @found.train(mods=list(chain))
    def train(message: Message, context: Context) -> Message:
        if flips is not None:
            flips.append(wants_label_flip(message))
        content = {"arrays": record(TRAINED), "metrics": MetricRecord({"num-examples": 10})}
        return Message(RecordDict(content), reply_to=message)

    @found.evaluate(mods=list(chain))
    def evaluate(message: Message, context: Context) -> Message:
        if flips is not None:
            flips.append(wants_label_flip(message))
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 10})}), reply_to=message)

    return found


def replies(*chain, rounds=(1,), kind=MessageType.TRAIN, n=3, flips=None, **options) -> list[Message]:
    """What n clients (node ids 100, 101, ...) answer to a message in each round."""
    local = grid(n, hostile=dict.fromkeys(range(n), app(*chain, flips=flips)), **options)
    content = [RecordDict({"arrays": record(SENT), "config": ConfigRecord({"server-round": r})}) for r in rounds]
    return [r for each in content for r in local.send_and_receive([Message(each, 100 + i, kind) for i in range(n)])]


def arrays(reply: Message) -> dict[str, np.ndarray]:
    return numpy(reply.content["arrays"])


def test_sign_flip_sends_the_negative_update() -> None:
    (reply,) = replies(mods.sign_flip, n=1)
    np.testing.assert_allclose(arrays(reply)["w"], [1.5, 3.0, 2.0])
    np.testing.assert_array_equal(arrays(reply)["steps"], [6, 7])
    assert arrays(reply)["w"].dtype == np.float32


def test_nan() -> None:
    (reply,) = replies(mods.nan, n=1)
    assert np.isnan(arrays(reply)["w"]).all()
    np.testing.assert_array_equal(arrays(reply)["steps"], [6, 7])


def test_gaussian_draws_anew_for_each_round_and_partition_and_repeats() -> None:
    one, other = (np.array([arrays(r)["w"] for r in replies(mods.gaussian, rounds=(1, 2), n=2)]) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one.round(5), axis=0)) == 4
    assert not np.isclose(one, TRAINED["w"]).all()


def test_any_attack_that_one_client_can_make() -> None:
    (reply,) = replies(mods.send("ipm(tau=3)"), n=1)
    np.testing.assert_allclose(arrays(reply)["w"], [0.5, 5.0, 2.0])


def test_an_attack_that_does_not_read_is_an_error_at_once() -> None:
    with pytest.raises(SpecError, match="did you mean sign_flip"):
        mods.send("sing_flip")


def test_inflated_weight() -> None:
    (reply,) = replies(mods.inflate_weight, n=1)
    assert reply.content["metrics"]["num-examples"] == 10**12
    np.testing.assert_array_equal(arrays(reply)["w"], TRAINED["w"])


def test_wrong_keys() -> None:
    (reply,) = replies(mods.wrong_keys, n=1)
    assert arrays(reply).keys() == {"w-of-another-model", "steps"}


def test_label_flip_is_asked_of_the_train_function() -> None:
    flips: list[bool] = []
    replies(byzantine(mods.label_flip, f=1), flips=flips)
    assert flips == [True, False, False]
    flips.clear()
    replies(mods.label_flip, kind=MessageType.EVALUATE, flips=flips)
    assert flips == [False] * 3


def test_label_flip_needs_no_config_record() -> None:
    flips: list[bool] = []
    local = grid(1, hostile={0: app(mods.label_flip, flips=flips)})
    local.send_and_receive([Message(RecordDict({"arrays": record(SENT)}), 100, MessageType.TRAIN)])
    assert flips == [True]


def lied(answers: list[Message]) -> list[bool]:
    return [not np.array_equal(arrays(reply)["w"], TRAINED["w"]) for reply in answers]


def test_only_the_first_f_partitions_lie() -> None:
    assert lied(replies(byzantine(mods.sign_flip, f=2))) == [True, True, False]
    assert lied(replies(byzantine(mods.sign_flip, f="f"), run_config={"f": 1})) == [True, False, False]


def test_the_run_config_chooses_the_lie() -> None:
    chosen = mods.chosen("attack")
    assert lied(replies(chosen, run_config={"attack": "sign-flip"})) == [True] * 3
    assert lied(replies(chosen, run_config={"attack": "alie"})) == [False] * 3  # for AttackedGrid, not for us
    mine = mods.chosen("attack", {"mine": mods.nan})
    assert lied(replies(mine, run_config={"attack": "mine"})) == [True] * 3
    assert lied(replies(mine, run_config={"attack": "nan"})) == [False] * 3


def test_evaluation_is_honest() -> None:
    for mod in mods.MODS.values():
        (reply,) = replies(mod, kind=MessageType.EVALUATE, n=1)
        assert dict(reply.content["metrics"]) == {"num-examples": 10}


def test_an_error_that_an_inner_mod_answers_with_stays_one() -> None:
    def refuses(message: Message, context: Context, call_next: object) -> Message:
        return Message(Error(6, "clipping norm is missing"), reply_to=message)

    for mod in [*mods.MODS.values(), mods.reveal_partition]:
        (reply,) = replies(mod, refuses, n=1)
        assert reply.error.reason == "clipping norm is missing"


def test_partitions_are_revealed() -> None:
    answers = replies(mods.reveal_partition)
    assert [reply.content["byzflow"]["partition-id"] for reply in answers] == [0, 1, 2]


def test_a_node_without_a_partition_says_so() -> None:
    (reply,) = replies(byzantine(mods.nan, f=1), n=1, node_configs={100: {}})
    assert "this node's config has no partition-id" in reply.error.reason


# -- every installed attack, from the client where its own update is enough, else from above

SPECS = {
    "mixture": "mixture(first=alie, second=sign_flip)",
    "switching": "switching(first=sign_flip, second=nan)",
    "sampled": "sampled(attack=sign_flip, low=1)",
}
INSTALLED = [SPECS.get(e.operator.name, e.operator.name) for e in byzflow.installed().of_kind("attack")]


@pytest.mark.parametrize("spec", INSTALLED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_installed_attack_can_be_made(spec: str) -> None:
    """And `Robust` goes on beside it."""
    attack = byzflow.parse(spec, f=1)
    if mods.sends_alone(attack):
        (reply,) = replies(mods.send(spec), n=1)
        assert not reply.has_error()
        (reply,) = replies(mods.chosen("attack"), n=1, run_config={"attack": spec})
        assert not reply.has_error()
    else:
        with pytest.raises(SpecError, match="use AttackedGrid"):
            mods.send(spec)
    robust = Robust(FedAvg(fraction_evaluate=0.0), "nnm | trimmed_mean", f=2)
    attacked = AttackedGrid(federation.grid(9), spec, f=2, against=robust)
    assert federation.distance(federation.train(robust, attacked, 4).arrays) < 1
    assert not any(each.kept_model for each in robust.audit)


def test_how_many_installed_attacks_need_one_client_alone() -> None:
    alone = {spec for spec in INSTALLED if mods.sends_alone(byzflow.parse(spec, f=1))}
    assert alone >= {"sign_flip", "gaussian", "nan", "inf", "zero", "huge", "ipm", "reverse", "bit_flip"}
    assert alone >= {"partial_drop", "model_replacement"}
    assert not alone & {"alie", "min_max", "opt_alie", "dyn_opt", "fang_krum"}


def test_model_replacement_boosts_by_the_number_of_clients() -> None:
    (reply, *_) = replies(mods.send("model_replacement"), n=4)
    np.testing.assert_allclose(arrays(reply)["w"], 2 + 4 * (TRAINED["w"] - 2))
    (reply, *_) = replies(mods.send("model_replacement(scale=3)"), n=4)
    np.testing.assert_allclose(arrays(reply)["w"], 2 + 3 * (TRAINED["w"] - 2))


def test_an_operator_that_is_no_attack_is_refused() -> None:
    with pytest.raises(SpecError, match="median is no attack"):
        mods.send("median")


def test_backdoor_is_asked_of_the_train_function() -> None:
    asked = []
    found = ClientApp()

    @found.train(mods=[mods.send("model_replacement"), mods.backdoor])
    def train(message: Message, context: Context) -> Message:
        asked.append((wants_backdoor(message), wants_label_flip(message)))
        content = {"arrays": record(TRAINED), "metrics": MetricRecord({"num-examples": 10})}
        return Message(RecordDict(content), reply_to=message)

    local = grid(2, hostile={0: found})
    content = RecordDict({"arrays": record(SENT), "config": ConfigRecord({"server-round": 1})})
    (reply,) = local.send_and_receive([Message(content, 100, MessageType.TRAIN)])
    assert asked == [(True, False)]
    np.testing.assert_allclose(arrays(reply)["w"], 2 + 2 * (TRAINED["w"] - 2))


def test_a_free_rider_sends_the_last_change_of_the_model_again() -> None:
    local = grid(1, hostile={0: app(mods.free_rider)})

    def ask(model: float) -> np.ndarray:
        sent = {"w": np.full(3, model, np.float32), "steps": np.array([4, 5])}
        (reply,) = local.send_and_receive([Message(RecordDict({"arrays": record(sent)}), 100, MessageType.TRAIN)])
        assert reply.content["metrics"]["num-examples"] == 10
        np.testing.assert_array_equal(arrays(reply)["steps"], [4, 5])
        return arrays(reply)["w"] - sent["w"]

    np.testing.assert_array_equal(ask(2), [0, 0, 0])
    np.testing.assert_array_equal(ask(5), [3, 3, 3])
    np.testing.assert_array_equal(ask(4), [-1, -1, -1])


@pytest.mark.parametrize("kind", mods.MALFORMED)
def test_every_malformed_reply_is_rejected_and_counts(kind: str) -> None:
    local = grid(5, hostile=dict.fromkeys(range(5), app(byzantine(mods.malformed(kind), f=2))))
    robust = Robust(FedAvg(fraction_evaluate=0.0), "median", f=2)
    robust.start(local, record(SENT), num_rounds=1)
    assert [(each.node_id, each.malformed) for each in robust.audit[0].rejected] == [(100, True), (101, True)]
    assert mods.malformed(kind.replace("_", "-")) is mods.MALFORMED[kind]


def test_a_malformed_reply_that_is_not_known() -> None:
    with pytest.raises(SpecError, match="did you mean truncated"):
        mods.malformed("truncate")


def test_a_slow_client_does_not_count_after_the_timeout_and_counts_before_it() -> None:
    for timeout, late in ((0.05, True), (30.0, False)):
        local = grid(5, hostile={1: app(mods.slow(0.1)), **{k: app() for k in (0, 2, 3, 4)}})
        robust = Robust(FedAvg(fraction_evaluate=0.0), "median", f=1)
        robust.start(local, record(SENT), num_rounds=1, timeout=timeout)
        assert [each.node_id for each in robust.audit[0].rejected] == [101] * late
    with pytest.raises(ValueError, match="seconds must be a number >= 0"):
        mods.slow(-1)


def test_a_silent_client_waits_longer_than_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    replies(mods.silent, n=1)
    replies(mods.silent, n=1, kind=MessageType.EVALUATE)
    assert len(waited) == 1
    assert waited[0] > 3600  # Strategy.start's default timeout


def test_a_crash_is_an_error_reply() -> None:
    (reply,) = replies(mods.crash, n=1)
    assert "this client crashes on purpose" in reply.error.reason


@pytest.mark.parametrize("name", ["nan", "wrong_keys"])
def test_malformed_lies_are_rejected(name: str) -> None:
    local = grid(5, hostile=dict.fromkeys(range(5), app(byzantine(mods.MODS[name], f=2))))
    robust = Robust(FedAvg(), "median", f=2)
    robust.start(local, record(SENT), num_rounds=1)
    assert [each.node_id for each in robust.audit[0].rejected] == [100, 101]
