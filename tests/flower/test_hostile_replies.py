"""One client sends something bad. Plain Flower ends or is taken over; `Robust` names the client and goes on.

Each case says what the same client does to plain FedAvg: "ends" the run, "ruins" the model, or "nothing"; what decides
between two of them is whose reply comes first.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg

from byzflow_flower import Robust, mods
from tests.flower.federation import CLIENTS, Answer, client, distance, grid, initial, numpy, record, reply, train

HOSTILE = 3  # its place; its node id is 103
NODE = 100 + HOSTILE


@dataclass(frozen=True)
class Case:
    answer: Answer
    reason: str  # part of what is said about the client; "" if its reply counts
    plain: str


def arrays(change: Callable[[dict[str, np.ndarray]], Any]) -> Answer:
    return lambda message, arrays, metrics: reply(message, change(arrays), metrics)


def metrics(**changes: Any) -> Answer:
    changes = {name.replace("_", "-"): value for name, value in changes.items()}
    return lambda message, arrays, metrics: reply(message, arrays, metrics | changes)


def content(change: Callable[[RecordDict], object]) -> Answer:
    def answer(message: Message, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> Message:
        sent = reply(message, arrays, metrics)
        change(sent.content)
        return sent

    return answer


def data(change: Callable[[bytes], bytes]) -> Answer:
    def changed(arrays: dict[str, np.ndarray]) -> ArrayRecord:
        sent = record(arrays)
        first = sent["layer.weight"]
        sent["layer.weight"] = Array(first.dtype, first.shape, first.stype, change(first.data))
        return sent

    return lambda message, arrays, metrics: reply(message, changed(arrays), metrics)


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def enormous(_: bytes) -> bytes:
    """A header that asks for 4 EiB, and a few numbers."""
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(48)


def raises(message: Message, arrays: object, metrics: object) -> Message:
    raise RuntimeError("no memory\x1b[2J left\nsecond line" + 10**6 * "!")


def filled(value: float) -> Answer:
    return arrays(lambda a: {name: np.full_like(values, value) for name, values in a.items()})


def one_nan(a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    a["layer.bias"][2] = np.nan
    return a


CASES = {
    "renamed key": Case(
        arrays(lambda a: {"other.weight": a["layer.weight"], "layer.bias": a["layer.bias"]}),
        "missing 'layer.weight' extra 'other.weight'",
        "ends",
    ),
    "missing key": Case(arrays(lambda a: {"layer.bias": a["layer.bias"]}), "missing 'layer.weight'", "ends"),
    "extra key": Case(arrays(lambda a: a | {"more": np.zeros(2, np.float32)}), "extra 'more'", "ends"),
    "no arrays": Case(arrays(lambda a: {}), "missing 'layer.bias', 'layer.weight'", "ends"),
    "other shape": Case(arrays(lambda a: a | {"layer.bias": np.zeros(5, np.float32)}), "shape (5,), (4,) was", "ends"),
    "transposed": Case(
        arrays(lambda a: a | {"layer.weight": a["layer.weight"].T.copy()}), "shape (4, 3), (3, 4) was sent", "ends"
    ),
    "broadcasting shape": Case(
        arrays(lambda a: a | {"layer.weight": np.full((1, 1), 50, np.float32)}), "shape (1, 1)", "ruins or ends"
    ),
    "float64": Case(
        arrays(lambda a: {k: v.astype(np.float64) for k, v in a.items()}), "is float64, float32 was sent", "nothing"
    ),
    "integers": Case(
        arrays(lambda a: {k: np.full(v.shape, 9000) for k, v in a.items()}), "is int64, float32 was sent", "ruins"
    ),
    "complex": Case(arrays(lambda a: {k: v + 1j for k, v in a.items()}), "is complex64", "ruins or ends"),
    "objects": Case(data(lambda b: npy(np.array([print] * 12, object).reshape(3, 4))), "is object", "ends"),
    "records": Case(data(lambda b: npy(np.zeros(12, "f4,f4"))), "has a header that np.save does not write", "ends"),
    "truncated bytes": Case(data(lambda b: b[:-7]), "holds 41 bytes, its shape needs 48", "ends"),
    "cut header": Case(data(lambda b: b[:50]), "is cut off inside its header", "ends"),
    "no bytes": Case(data(lambda b: b""), "is not a .npy file", "ends"),
    "pickle": Case(data(lambda b: b"\x80\x04N."), "is not a .npy file", "ends"),
    "enormous": Case(data(enormous), "shape (1152921504606846976,)", "ends"),
    "other stype": Case(
        arrays(lambda a: ArrayRecord({k: Array(str(v.dtype), v.shape, "pickle", npy(v)) for k, v in a.items()})),
        "is serialised as 'pickle'",
        "ends",
    ),
    "one NaN": Case(arrays(one_nan), "array 'layer.bias' holds 1 NaN or Inf", "ruins"),
    "all Inf": Case(filled(np.inf), "holds 12 NaN or Inf", "ruins"),
    "1e30": Case(filled(1e30), "", "ruins"),
    "largest float": Case(filled(3e38), "", "ruins"),
    "huge examples": Case(
        lambda m, a, s: reply(m, {k: -v for k, v in a.items()}, s | {"num-examples": 10**12}), "", "ruins"
    ),
    "negative examples": Case(metrics(num_examples=-10 * (CLIENTS - 1)), "is -60, must be a finite number > 0", "ends"),
    "zero examples": Case(metrics(num_examples=0), "is 0, must be", "nothing"),
    "NaN examples": Case(metrics(num_examples=np.nan), "is nan, must be", "ruins"),
    "infinite examples": Case(metrics(num_examples=np.inf), "is inf, must be", "ruins"),
    "too many digits": Case(metrics(num_examples=10**400), "is inf, must be", "nothing"),
    "list of examples": Case(metrics(num_examples=[10]), "is a list, must be", "ends"),
    "no examples": Case(lambda m, a, s: reply(m, a, {"loss": 1.0}), "metric 'num-examples' is missing", "ends"),
    "extra metric": Case(metrics(more=1.0), "its metrics differ from most replies' in 'more'", "ends"),
    "missing metric": Case(
        lambda m, a, s: reply(m, a, {"num-examples": 10}), "differ from most replies' in 'loss'", "ends"
    ),
    "metric list": Case(metrics(loss=[0.5, 0.5]), "differ from most replies' in 'loss'", "ends"),
    "no metrics": Case(content(lambda c: c.pop("metrics")), "it holds 0 MetricRecords, must be 1", "ends"),
    "more metrics": Case(content(lambda c: c.update(more=MetricRecord())), "it holds 2 MetricRecords", "ends"),
    "more arrays": Case(content(lambda c: c.update(more=record({}))), "it holds 2 ArrayRecords, must be 1", "ends"),
    "only config": Case(content(lambda c: [c.clear(), c.update(c=ConfigRecord())]), "it holds 0", "ends"),
    "other names": Case(
        content(lambda c: c.update(weights=c.pop("arrays"))),
        "records are named 'weights' and 'metrics', most replies' 'arrays'",
        "ends",
    ),
    "exception": Case(raises, "error 2: RuntimeError: no memory?[2J left second line!!!", "nothing"),
    "not a message": Case(lambda m, a, s: {"arrays": a}, "TypeError: a ClientApp must return a Message", "nothing"),  # type: ignore[arg-type,return-value]
}


def hostile_grid(case: Case):
    return grid(hostile={HOSTILE: client(case.answer)})


def plain_outcome(case: Case) -> str:
    """What the client does to plain FedAvg."""
    try:
        left = distance(train(FedAvg(), hostile_grid(case)).arrays)
        return "nothing" if left < 1 else "ruins"
    except (Exception, SystemExit):
        return "ends"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Casting complex")
def test_plain_flower_and_robust_side_by_side(name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = CASES[name]
    assert plain_outcome(case) in case.plain.split(" or ")
    caplog.clear()
    robust = Robust(FedAvg(), "trimmed_mean", f=1)
    with caplog.at_level("INFO", logger="flwr"):
        result = train(robust, hostile_grid(case))
    assert distance(result.arrays) < 1
    assert len(robust.audit) == 3
    for round_audit in robust.audit:
        assert not round_audit.kept_model
        if case.reason:
            (rejection,) = round_audit.rejected
            assert rejection.node_id == NODE
            assert case.reason in rejection.reason
            assert rejection.reason.isprintable()
            assert len(rejection.reason) <= 300
            assert NODE not in round_audit.weights
        else:
            assert not round_audit.rejected
            assert max(round_audit.suspicion, key=round_audit.suspicion.__getitem__) == NODE
        assert sum(round_audit.weights.values()) == pytest.approx(1)
    metrics = result.train_metrics_clientapp[2]
    assert ("robust-rejected/103" in metrics) == bool(case.reason)
    assert ("robust-weight/103" in metrics) != bool(case.reason)
    assert (f"node {NODE} rejected: " in caplog.text) == bool(case.reason)
    assert np.isfinite(metrics["loss"])


def test_no_answer_before_the_timeout() -> None:
    """Flower's FedAvg goes on without it, and so does `Robust`, which names the client and spends no f on it."""
    late = {HOSTILE: client(mods=[mods.slow(0.4)])}
    plain = FedAvg().start(grid(hostile=late), initial(), num_rounds=2, timeout=0.2)
    assert distance(plain.arrays) < 1.5
    robust = Robust(FedAvg(), "trimmed_mean", f=1)
    assert distance(robust.start(grid(hostile=late), initial(), num_rounds=2, timeout=0.2).arrays) < 1.5
    for each in robust.audit:
        assert [(lost.node_id, lost.reason, lost.malformed) for lost in each.rejected] == [(NODE, "no reply", False)]
        assert each.operator == "trimmed_mean(f=1)"


def test_a_hostile_reply_does_not_end_an_adaptive_optimiser() -> None:
    robust = Robust(FedAdam(eta=0.3), "median", f=1)
    assert distance(train(robust, hostile_grid(CASES["renamed key"]), 6).arrays) < distance(initial())
    assert [len(each.rejected) for each in robust.audit] == [1] * 6


def test_key_order_is_the_clients_own_business() -> None:
    """Krum compares by key: Flower's own compares the arrays in the order of each reply."""
    backwards = client(lambda m, a, s: reply(m, dict(reversed(a.items())), s))
    one, other = (Robust(FedAvg(), "krum", f=1) for _ in range(2))
    result, changed = train(one, grid()), train(other, grid(hostile={HOSTILE: backwards}))
    for name, values in numpy(result.arrays).items():
        np.testing.assert_array_equal(numpy(changed.arrays)[name], values)
    assert list(changed.arrays) == list(initial())
    assert [each.weights for each in one.audit] == [each.weights for each in other.audit]


def test_metrics_of_training_are_medians() -> None:
    liar = client(lambda m, a, s: reply(m, a, s | {"loss": 1e9}))
    honest = train(Robust(FedAvg(), "median"), grid(), 1).train_metrics_clientapp[1]["loss"]
    lied = train(Robust(FedAvg(), "median"), grid(hostile={0: liar}), 1).train_metrics_clientapp[1]["loss"]
    plain = train(FedAvg(), grid(hostile={0: liar}), 1).train_metrics_clientapp[1]["loss"]
    assert abs(lied - honest) < 1 < 1e8 < plain


EVALUATE = {
    "NaN": ({"num-examples": np.nan}, "is nan"),
    "negative": ({"num-examples": -60}, "is -60"),
    "missing": ({"accuracy": None}, "differ from most replies' in 'accuracy'"),
    "extra": ({"more": 1}, "differ from most replies' in 'more'"),
    "lies": ({"accuracy": 1e9, "num-examples": 10**12}, ""),
    "not finite": ({"accuracy": np.inf}, ""),
    "not a number": ({"accuracy": np.nan}, ""),
}


@pytest.mark.parametrize("name", EVALUATE)
def test_hostile_evaluation(name: str) -> None:
    changes, reason = EVALUATE[name]

    def evaluate(message, metrics):
        lies = {key: value for key, value in (metrics | changes).items() if value is not None}
        return Message(RecordDict({"metrics": MetricRecord(lies)}), reply_to=message)

    robust = Robust(FedAvg(), "median")
    result = train(robust, grid(hostile={HOSTILE: client(evaluate=evaluate)}), 2)
    reported = result.evaluate_metrics_clientapp[2]
    assert 0.5 <= reported["accuracy"] <= 0.56
    assert len(robust.evaluate_audit) == 2
    rejected = robust.evaluate_audit[1].rejected
    assert [(each.node_id, reason in each.reason) for each in rejected] == ([(NODE, True)] if reason else [])
    assert ("robust-rejected/103" in reported) == bool(reason)


def test_nobody_evaluates_usefully() -> None:
    def broken(message, metrics):
        raise ValueError("no test data")

    app = client(evaluate=broken)
    robust = Robust(FedAvg(), "median")
    result = train(robust, grid(hostile=dict.fromkeys(range(CLIENTS), app)), 1)
    assert "accuracy" not in result.evaluate_metrics_clientapp[1]
    assert len(robust.evaluate_audit[0].rejected) == CLIENTS
