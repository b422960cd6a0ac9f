"""What `Robust` does besides refusing bad replies: bounds, weights, audit, too few replies."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedXgbBagging,
    FedXgbCyclic,
)

import byzflow
from byzflow.errors import NotEnoughSenders, SpecError
from byzflow_flower import Rejection, Robust, RoundAudit
from tests.flower.federation import BATCH_NORM, CLIENTS, client, distance, grid, initial, numpy, record, reply, train


def fails(message, arrays, metrics):
    raise ConnectionError("gone")


def far(message, arrays, metrics):
    return reply(message, {name: values + 1000 for name, values in arrays.items()}, metrics)


class Losing(Grid):
    """A grid on which the replies of some nodes never arrive."""

    def __init__(self, inside, lost):
        self.inside, self.lost = inside, lost

    def send_and_receive(self, messages, *, timeout=None):
        replies = self.inside.send_and_receive(messages, timeout=timeout)
        return [each for each in replies if each.metadata.src_node_id not in self.lost]

    def get_node_ids(self):
        return self.inside.get_node_ids()

    def refuse(self, *args, **kwargs):
        raise NotImplementedError

    set_run = create_message = push_messages = pull_messages = refuse
    run = property(refuse)


# -- bounds are checked before anything is sent


@pytest.mark.parametrize(("wrong", "named"), [(FedAvg, "FedAvg"), (3, "int"), ("FedAvg", "str")])
def test_what_is_no_strategy_is_told_at_once(wrong, named) -> None:
    with pytest.raises(TypeError, match=rf"wraps a strategy, such as FedAvg\(.*\), got {named}$"):
        Robust(wrong, "median")


def test_too_few_clients_for_the_rule_are_an_error_at_the_start() -> None:
    asked = []
    app = client(lambda message, arrays, metrics: asked.append(message))
    with pytest.raises(NotEnoughSenders, match=r"krum\(f=3\) needs at least 9 senders, got 7; sample more nodes"):
        train(Robust(FedAvg(), "krum", f=3), grid(hostile=dict.fromkeys(range(CLIENTS), app)))
    assert not asked


@pytest.mark.parametrize(
    ("spec", "options", "error", "words"),
    [
        ("krumm", {"f": 1}, SpecError, "did you mean"),
        ("krum", {}, SpecError, "needs f"),
        ("nnm", {"f": 1}, SpecError, "is no aggregation"),
        ("alie", {"f": 1}, SpecError, "is no aggregation"),
        ("krum(f=1)", {"examples_cap": 5}, SpecError, "takes no sample weights"),
        ("mean", {"examples_cap": -1}, ValueError, "examples_cap must be a finite number > 0, got -1"),
        ("mean", {"examples_cap": float("nan")}, ValueError, "examples_cap must be a finite"),
        ("mean", {"buffers": "mean"}, ValueError, "must be 'median' or 'server', got 'mean'"),
    ],
)
def test_wrong_options_are_an_error_when_it_is_made(spec, options, error, words) -> None:
    with pytest.raises(error, match=words):
        Robust(FedAvg(), spec, **options)


@pytest.mark.parametrize("trees", [FedXgbBagging, FedXgbCyclic])
def test_trees_are_refused(trees) -> None:
    with pytest.raises(TypeError, match="sends trees, not vectors"):
        Robust(trees(), "median")
    with pytest.raises(TypeError, match="sends trees"):
        Robust(DifferentialPrivacyServerSideFixedClipping(trees(), 0.1, 1.0, 7), "median")


def test_models_that_are_no_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the arrays sent"):
        train(Robust(FedAvg(), "median"), grid(), arrays=record({"counts": np.arange(3)}))
    with pytest.raises(ValueError, match="array 'w' is complex64"):
        train(Robust(FedAvg(), "median"), grid(), arrays=record({"w": np.zeros(3, np.complex64)}))


def test_clients_must_be_sent_the_same_model() -> None:
    class Personal(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            other = {name: values + 1 for name, values in numpy(arrays).items()}
            messages[2].content = type(messages[2].content)({"arrays": record(other)})
            return messages

    with pytest.raises(ValueError, match="one model"):
        train(Robust(Personal(), "median"), grid())


@pytest.mark.parametrize("name", ["min_train_nodes", "min_evaluate_nodes", "min_available_nodes"])
def test_a_minimum_that_a_lost_node_would_freeze_is_warned_about_once(name, caplog) -> None:
    train(Robust(FedAvg(**{name: 6}), "trimmed_mean", f=2), grid())
    warned = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(warned) == 1
    assert f"{name}=6, but with f=2 only 5 of the 7 nodes are sure to stay" in warned[0]


def test_no_warning_where_there_is_no_danger(caplog) -> None:
    train(Robust(FedAvg(min_train_nodes=5), "trimmed_mean", f=2), grid())
    assert not [each for each in caplog.records if each.levelname == "WARNING"]


# -- f shrinks with the rejected


def test_a_malformed_reply_uses_up_one_of_f() -> None:
    wrong = client(lambda m, a, s: reply(m, {}, s))
    robust = Robust(FedAvg(), "trimmed_mean", f=2)
    train(robust, grid(hostile={0: wrong}), 1)
    assert robust.audit[0].operator == "trimmed_mean(f=1)"


def test_an_error_or_silence_uses_up_f_only_where_it_must() -> None:
    robust = Robust(FedAvg(), "trimmed_mean", f=2)  # five replies are enough for f = 2
    train(robust, Losing(grid(hostile={0: client(fails)}), lost={101}), 1)
    assert robust.audit[0].operator == "trimmed_mean(f=2)"
    assert robust.audit[0].rejected == (
        Rejection(100, "error 2: ConnectionError: gone", malformed=False),
        Rejection(101, "no reply", malformed=False),
    )
    robust = Robust(FedAvg(), "krum", f=2)  # five are enough for f = 1
    train(robust, Losing(grid(hostile={0: client(fails)}), lost={101}), 1)
    assert robust.audit[0].operator == "krum(f=1)"


def test_three_clients_and_one_that_breaks_go_on() -> None:
    robust = Robust(FedAvg(), "trimmed_mean", f=1)
    result = train(robust, grid(3, hostile={0: client(fails)}))
    assert distance(result.arrays) < 1
    assert {each.kept_model for each in robust.audit} == {""}


def test_more_malformed_replies_than_f_are_reported(caplog) -> None:
    wrong = client(lambda m, a, s: reply(m, {}, s))
    train(Robust(FedAvg(), "trimmed_mean", f=1), grid(hostile={0: wrong, 1: wrong}), 1)
    assert "2 malformed replies, more than the declared f=1" in caplog.text


@pytest.mark.parametrize(
    ("spec", "broken", "why"),
    [("krum", 5, "krum(f=0) needs at least 3 senders, got 2"), ("mean", 7, "no reply counts")],
)
def test_too_few_replies_keep_the_model_and_say_so(spec, broken, why, caplog) -> None:
    inner = FedAdam()
    robust = Robust(inner, spec, f=1)
    before = initial(**BATCH_NORM)
    result = train(robust, grid(hostile=dict.fromkeys(range(broken), client(fails))), 2, before)
    assert numpy(result.arrays).keys() == numpy(before).keys()
    for name, values in numpy(before).items():
        np.testing.assert_array_equal(numpy(result.arrays)[name], values)
    assert [each.kept_model for each in robust.audit] == [why] * 2
    assert inner.m_t is None  # the optimiser did not step
    assert f"round 2: model kept, {why}" in caplog.text
    assert result.train_metrics_clientapp[2] == {f"robust-rejected/{100 + i}": 1 for i in range(broken)}


def test_training_goes_on_after_a_round_without_replies() -> None:
    round_of_trouble = 2

    def sometimes(message, arrays, metrics):
        if message.content["config"]["server-round"] == round_of_trouble:
            raise ConnectionError("gone")
        return reply(message, arrays, metrics)

    app = client(sometimes)
    robust = Robust(FedAvgM(server_learning_rate=1.0), "median")
    result = train(robust, grid(hostile=dict.fromkeys(range(CLIENTS), app)), 4)
    assert [bool(each.kept_model) for each in robust.audit] == [False, True, False, False]
    assert distance(result.arrays) < 1


def test_replies_that_nobody_asked_for_do_not_count_and_leave_f_alone() -> None:
    class Talkative(Losing):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            return [*replies, *replies[:1]]

    robust = Robust(FedAvg(fraction_evaluate=0.0), "trimmed_mean", f=3)
    train(robust, Talkative(grid(), lost=()), 1)
    assert [each.reason for each in robust.audit[0].rejected] == ["it was not asked, or has answered already"]
    assert robust.audit[0].operator == "trimmed_mean(f=3)"
    assert len(robust.audit[0].weights) == CLIENTS


def test_no_training_asked_for() -> None:
    result = train(Robust(FedAvg(fraction_train=0.0), "median"), grid(), 1)
    assert result.train_metrics_clientapp == {}
    assert "accuracy" in result.evaluate_metrics_clientapp[1]


# -- what clients claim to have


def claiming(*numbers):
    return {place: client(lambda m, a, s, n=n: reply(m, a, s | {"num-examples": n})) for place, n in enumerate(numbers)}


def test_claims_are_ignored() -> None:
    claimed = train(Robust(FedAvg(), "mean"), grid(hostile=claiming(1, 2, 3, 10**12, 5, 6, 7)), 1)
    equal = train(Robust(FedAvg(), "mean"), grid(), 1)
    for name, values in numpy(equal.arrays).items():
        np.testing.assert_array_equal(numpy(claimed.arrays)[name], values)


def test_claims_below_the_cap_weigh_as_in_plain_flower() -> None:
    claims = (1, 2, 3, 40, 5, 6, 7)
    plain = train(FedAvg(), grid(hostile=claiming(*claims)), 2)
    robust = Robust(FedAvg(), "mean", examples_cap=50)
    capped = train(robust, grid(hostile=claiming(*claims)), 2)
    for name, values in numpy(plain.arrays).items():
        np.testing.assert_allclose(numpy(capped.arrays)[name], values, rtol=0, atol=1e-6)
    assert robust.audit[0].weights[103] == pytest.approx(40 / sum(claims))


def test_a_claim_weighs_no_more_than_the_cap() -> None:
    robust = Robust(FedAvg(), "mean", examples_cap=20)
    train(robust, grid(hostile=claiming(10, 10, 10, 10**12, 10, 10, 10)), 1)
    assert robust.audit[0].weights[103] == pytest.approx(20 / 80)


# -- the audit


def test_the_audit_says_who_moved_the_model() -> None:
    robust = Robust(FedAvg(), "krum", f=1)
    result = train(robust, grid(hostile={0: client(far), 6: client(fails)}), 2)
    first = robust.audit[0]
    assert isinstance(first, RoundAudit)
    assert first.server_round == 1
    assert first.weights.keys() == {100, 101, 102, 103, 104, 105}
    assert sorted(first.weights.values()) == [0, 0, 0, 0, 0, 1]
    assert first.weights[100] == 0
    metrics = result.train_metrics_clientapp[1]
    assert {name: value for name, value in metrics.items() if name.startswith("robust-")} == first.metrics()
    assert metrics["robust-rejected/106"] == 1
    assert "num-examples" not in metrics


def test_the_metrics_survive_flowers_serialisation_with_its_64_bit_node_ids() -> None:
    nodes = [2**64 - 1, 2**63 + 5, 3]
    inside = grid(3)
    inside = type(inside)({node: client() for node in nodes[:2]} | {3: client(fails)})
    metrics = train(Robust(FedAvg(), "median"), inside, 1).train_metrics_clientapp[1]
    names = [f"robust-{what}/{node}" for what in ("weight", "distance", "suspicion") for node in nodes[:2]]
    assert metrics.keys() == {"loss", "robust-rejected/3", *names}
    assert MetricRecord.inflate(metrics.deflate()) == metrics


def test_log_lines_are_short_for_many_nodes() -> None:
    lines = RoundAudit(4, "median", {node: node / 4950 for node in range(100)}, (Rejection(7, "late"),)).lines()
    assert lines[0] == "round 4: median over 100 replies"
    assert lines[1] == "the 12 lowest and the 12 highest weights of 100:"
    assert lines[2] == "node 0 weighs 0.0000, node 1 weighs 0.0002, node 2 weighs 0.0004, node 3 weighs 0.0006"
    assert lines[-1] == "node 7 rejected: late"
    assert len(lines) == 2 + 24 / 4 + 1


def test_the_summary_tells_both_settings(caplog) -> None:
    train(Robust(FedAvg(fraction_train=0.9), "arc | nnm | trimmed_mean", f=1), grid(), 1)
    assert "Robust aggregation: arc(f=1) | nnm(f=1) | trimmed_mean(f=1)" in caplog.text
    assert "Numbers of examples claimed: ignored" in caplog.text
    assert "Fraction: train (0.90)" in caplog.text


# -- rules with state, and chains


def test_what_a_rule_remembers_is_passed_to_its_next_call() -> None:
    robust = Robust(FedAvg(), "bucketing(s=2) | median")
    train(robust, grid(), 3)
    assert robust.state["round"] == 3


def test_an_operator_can_be_given() -> None:
    operator = byzflow.parse("nnm | median", f=2)
    assert Robust(FedAvg(), operator).f == 2
    assert Robust(FedAvg(), "krum(f=1)").f == 1


def test_arrival_order_decides_nothing() -> None:
    class Reversed(Losing):
        def send_and_receive(self, messages, *, timeout=None):
            return super().send_and_receive(messages, timeout=timeout)[::-1]

    same = client(lambda m, a, s: reply(m, {name: np.ones_like(v) for name, v in a.items()}, s))
    results = [
        Robust(FedAvg(), "krum", f=2),
        Robust(FedAvg(), "krum", f=2),
    ]
    everyone = dict.fromkeys(range(CLIENTS), same)  # all replies are equal: which wins is a tie
    train(results[0], grid(hostile=everyone), 1)
    train(results[1], Reversed(grid(hostile=everyone), lost=()), 1)
    assert results[0].audit[0].weights == results[1].audit[0].weights


def test_the_callers_model_is_not_written_to() -> None:
    before = initial(**BATCH_NORM)
    copy = ArrayRecord(dict(before))
    train(Robust(FedAvgM(server_momentum=0.5), "median"), grid(), 2, before)
    assert before == copy


def test_messages_are_the_wrapped_strategys_own() -> None:
    class Spy(FedAvg):
        replies: list[Message] = []  # noqa: RUF012

        def aggregate_train(self, server_round, replies):
            self.replies = list(replies)
            return super().aggregate_train(server_round, self.replies)

    spy = Spy()
    train(Robust(spy, "median"), grid(hostile={2: client(fails)}), 1)
    assert sorted(each.metadata.src_node_id for each in spy.replies) == [100, 101, 103, 104, 105, 106]
    assert len({bytes(each.content["arrays"]["layer.weight"].data) for each in spy.replies}) == 1


def test_the_superlinks_word_for_a_lost_node_names_that_node_and_no_other() -> None:
    class Telling(Losing):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            words = [Message(Error(3, "node unavailable"), reply_to=each) for each in messages[:1]]
            for word in words:
                vars(word.metadata)["_src_node_id"] = 1  # as Flower does
            return [*super().send_and_receive(messages, timeout=timeout), *words]

    robust = Robust(FedAvg(fraction_evaluate=0.0), "trimmed_mean", f=2)
    train(robust, Telling(grid(), lost={100}), 1)
    assert [(each.node_id, each.reason) for each in robust.audit[0].rejected] == [(100, "no reply")]
