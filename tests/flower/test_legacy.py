"""The older strategy API: the same results as unwrapped, and hostile results rejected by name."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.common import (
    Code,
    EvaluateRes,
    FitRes,
    Parameters,
    Scalar,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAdam, FedAvg, FedAvgM, FedXgbBagging, Strategy

from byzflow.errors import NotEnoughSenders
from byzflow_flower import legacy

CLIENTS = 7
OK = Status(Code.OK, "")
START = [np.zeros((3, 4), np.float32), np.zeros(4, np.float32), np.array([5], np.int64)]
Lie = Callable[[FitRes], FitRes]


class Client(ClientProxy):
    """Known by its id; what it answers is made by `results`."""

    get_properties = get_parameters = fit = evaluate = reconnect = None  # type: ignore[assignment]


Client.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def manager(cids: list[str] | None = None) -> SimpleClientManager:
    made = SimpleClientManager()
    for cid in cids or [str(100 + place) for place in range(CLIENTS)]:
        made.register(Client(cid))
    return made


def target(place: int) -> list[np.ndarray]:
    rng = np.random.default_rng(place)
    return [np.float32(1 + 0.1 * rng.normal(size=START[0].shape)), np.float32(0.1 * rng.normal(size=START[1].shape))]


def honest(parameters: Parameters, place: int) -> FitRes:
    first, second, counter = parameters_to_ndarrays(parameters)
    goal = target(place)
    arrays = [(first + (goal[0] - first) / 2), (second + (goal[1] - second) / 2), counter + 1]
    return FitRes(OK, ndarrays_to_parameters(arrays), 10, {"accuracy": 0.5 + place / 100, "note": "text"})


def train(strategy: Strategy, rounds: int = 3, lies: Mapping[int, Lie] | None = None, cids: list[str] | None = None):
    """What flwr.server.Server does in its rounds."""
    clients = manager(cids)
    parameters = strategy.initialize_parameters(clients) or ndarrays_to_parameters(START)
    reported: dict[str, Scalar] = {}
    for server_round in range(1, rounds + 1):
        results = []
        for client, ins in strategy.configure_fit(server_round, parameters, clients):
            place = list(clients.all()).index(client.cid)
            result = honest(ins.parameters, place)
            results.append((client, (lies or {}).get(place, lambda same: same)(result)))
        new, reported = strategy.aggregate_fit(server_round, results, [])
        parameters = new or parameters
    return parameters_to_ndarrays(parameters), reported


def fedavg(**more) -> FedAvg:
    return FedAvg(min_fit_clients=2, fit_metrics_aggregation_fn=lambda all_: {"n": len(all_), **all_[0][1]}, **more)


MADE: dict[str, Callable[[], Strategy]] = {
    "FedAvg": fedavg,
    "FedAvg not in place": lambda: fedavg(inplace=False),
    "FedAvgM": lambda: FedAvgM(server_momentum=0.9, initial_parameters=ndarrays_to_parameters(START[:3])),
    "FedAdam": lambda: FedAdam(initial_parameters=ndarrays_to_parameters(START[:3]), eta=0.1),
}


@pytest.mark.parametrize("name", MADE)
def test_with_mean_and_no_attack_it_equals_the_wrapped_strategy(name: str) -> None:
    plain, _ = train(MADE[name]())
    wrapped, _ = train(legacy.Robust(MADE[name](), "mean"))
    for ours, theirs in zip(wrapped[:2], plain[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        assert ours.dtype == np.float32


def test_integers_keep_their_dtype_and_metrics_are_medians() -> None:
    strategy = legacy.Robust(fedavg(), "nnm | trimmed_mean", f=2)
    arrays, reported = train(strategy, rounds=2)
    assert (arrays[2].dtype, arrays[2].tolist()) == (np.int64, [7])
    assert (reported["n"], reported["accuracy"]) == (CLIENTS, pytest.approx(0.53))
    assert "note" not in reported  # text has no median
    assert sum(reported[f"robust-weight/{100 + place}"] for place in range(CLIENTS)) == pytest.approx(1)


def saved(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


class Touch:
    """Unpickling it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def changed(place: int, data: bytes) -> Lie:
    def lie(result: FitRes) -> FitRes:
        tensors = list(result.parameters.tensors)
        tensors[place] = data
        return FitRes(OK, Parameters(tensors, "numpy.ndarray"), 10, result.metrics)

    return lie


def claims(examples: int) -> Lie:
    return lambda result: FitRes(OK, result.parameters, examples, result.metrics)


HUGE = saved(START[0]).replace(b"(3, 4)", b"(9999999999, 999999)")  # numpy would reserve 40 PB
LIES: dict[str, tuple[Lie, str]] = {
    "nan": (changed(0, saved(np.full((3, 4), np.nan, np.float32))), "array '0' holds 12 NaN or Inf"),
    "shape": (changed(0, saved(np.zeros((4, 3), np.float32))), "array '0' has shape (4, 3), (3, 4) was sent"),
    "dtype": (changed(1, saved(np.zeros(4))), "array '1' is float64, float32 was sent"),
    "scalar": (changed(0, saved(np.zeros((1, 1), np.float32))), "array '0' has shape (1, 1)"),
    "objects": (changed(0, saved(np.array([None] * 12).reshape(3, 4), allow_pickle=True)), "array '0' is object"),
    "cut off": (changed(0, saved(START[0])[:-8]), "array '0' holds 40 bytes, its shape needs 48"),
    "huge": (changed(0, HUGE), "array '0' has"),
    "no npy": (changed(0, b"PK\x03\x04"), "array '0' is not a .npy file"),
    "pickle": (changed(0, pickle.dumps(START[0])), "array '0' is not a .npy file"),
    "fewer": (lambda r: FitRes(OK, Parameters(r.parameters.tensors[:1], "numpy.ndarray"), 10, r.metrics), "missing"),
    "more": (lambda r: FitRes(OK, Parameters([*r.parameters.tensors, b""], "numpy.ndarray"), 10, r.metrics), "extra"),
    "type": (lambda r: FitRes(OK, Parameters(r.parameters.tensors, "pickle"), 10, r.metrics), "serialised as 'pickle'"),
    "no examples": (claims(0), "metric 'num-examples' is 0, must be a finite number > 0"),
    "negative": (claims(-5), "metric 'num-examples' is -5"),
    "metrics": (lambda r: FitRes(OK, r.parameters, 10, {}), "its metrics differ from most replies' in 'accuracy'"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_hostile_result_is_rejected_and_named(name: str) -> None:
    lie, reason = LIES[name]
    strategy = legacy.Robust(fedavg(), "trimmed_mean", f=1)
    arrays, reported = train(strategy, lies={2: lie})
    for audit in strategy.audit:
        (rejected,) = audit.rejected
        assert rejected.node_id == 102
        assert reason in rejected.reason
    assert reported["robust-rejected/102"] == 1
    assert np.abs(arrays[0] - 1 + 0.5**3).max() < 0.1


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    trap = np.array([Touch(tmp_path / "was unpickled")] * 12, dtype=object).reshape(3, 4)
    strategy = legacy.Robust(fedavg(), "trimmed_mean", f=1)
    train(strategy, rounds=1, lies={2: changed(0, saved(trap, allow_pickle=True))})
    assert [each.node_id for each in strategy.audit[0].rejected] == [102]
    assert not list(tmp_path.iterdir())


def test_a_trillion_claimed_examples_and_1e30_move_nothing() -> None:
    def lie(result: FitRes) -> FitRes:
        return FitRes(
            OK, ndarrays_to_parameters([np.full((3, 4), 1e30, np.float32), *START[1:]]), 10**12, {"accuracy": 9.0}
        )

    arrays, reported = train(legacy.Robust(fedavg(), "trimmed_mean", f=1), lies={2: lie})
    assert np.abs(arrays[0] - 1 + 0.5**3).max() < 0.2
    assert 0.5 <= reported["accuracy"] <= 0.56
    plain, _ = train(fedavg(), lies={2: lie})
    assert np.abs(plain[0]).max() > 1e29


def test_silence_and_strangers_do_not_end_the_round() -> None:
    strategy = legacy.Robust(fedavg(), "trimmed_mean", f=1)
    clients = manager()
    asked = strategy.configure_fit(1, ndarrays_to_parameters(START), clients)
    results = [(client, honest(ins.parameters, place)) for place, (client, ins) in enumerate(asked)]
    answers = [*results[1:], (Client("999"), results[0][1])]
    parameters, _ = strategy.aggregate_fit(1, answers, [RuntimeError("it crashed")])
    assert parameters is not None
    (rejected,) = strategy.audit[0].rejected
    assert (rejected.node_id, rejected.reason) == (int(asked[0][0].cid), "no reply")
    assert strategy.aggregate_fit(1, [], [])[0] == ndarrays_to_parameters(START)  # nobody: the model stays
    assert strategy.audit[1].kept_model == "no reply counts"


def test_evaluation_reports_medians_and_names_the_malformed() -> None:
    strategy = legacy.Robust(fedavg(evaluate_metrics_aggregation_fn=lambda all_: dict(all_[0][1])), "trimmed_mean", f=1)
    asked = strategy.configure_evaluate(1, ndarrays_to_parameters(START), manager())
    results = [
        (client, EvaluateRes(OK, float(place), 10, {"accuracy": place / 10, "loss": -1.0}))
        for place, (client, _) in enumerate(asked)
    ]
    results[6][1].loss = 1e30
    results[5][1].num_examples = -1
    loss, metrics = strategy.aggregate_evaluate(1, results, [])
    assert loss == pytest.approx(2.5)
    assert metrics["accuracy"] == pytest.approx(0.25)
    assert metrics[f"robust-rejected/{asked[5][0].cid}"] == 1


def test_clients_without_numbers_are_numbered() -> None:
    cids = [f"ipv4:10.0.0.{place}" for place in range(CLIENTS)]
    strategy = legacy.Robust(fedavg(), "trimmed_mean", f=1)
    train(strategy, lies={2: LIES["nan"][0]}, cids=cids)
    for audit in strategy.audit:
        assert [strategy.clients[each.node_id] for each in audit.rejected] == [cids[2]]
    assert sorted(strategy.clients) == list(range(1, CLIENTS + 1))


def test_too_few_clients_are_refused_before_anything_is_sent() -> None:
    strategy = legacy.Robust(fedavg(), "krum", f=3)
    with pytest.raises(NotEnoughSenders, match="needs at least 9 senders, got 7"):
        strategy.configure_fit(1, ndarrays_to_parameters(START), manager())


def test_trees_are_refused() -> None:
    with pytest.raises(TypeError, match="FedXgbBagging sends trees"):
        legacy.Robust(FedXgbBagging(), "median")
