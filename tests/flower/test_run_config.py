"""The rule of a run from its run-config, f from a fraction, and mistakes that show before the first round."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

import byzflow
from byzflow.errors import ByzflowError, NotEnoughSenders, SpecError
from byzflow_flower import AttackedGrid, Robust
from tests.flower.federation import client, grid, reply, target, train


def test_a_run_config_says_it_all(tmp_path) -> None:
    config = {
        "aggregator": "arc | nnm | trimmed_mean",
        "f": 2,
        "exclude-after": 3,
        "audit-file": str(tmp_path / "a.jsonl"),
        "buffers": "server",
        "examples-cap": 0,
        "tensorboard-dir": "",
        "learning-rate": 0.1,
    }
    robust = Robust.from_run_config(FedAvg(), config)
    assert str(robust.operator) == "arc(f=2) | nnm(f=2) | trimmed_mean(f=2)"
    assert (robust.f, robust.buffers, robust.examples_cap) == (2, "server", None)
    train(robust, grid(), 1)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_the_run_config_goes_before_the_programs_own_options() -> None:
    assert Robust.from_run_config(FedAvg(), {"aggregator": "krum", "f": 2}, f=1, buffers="server").f == 2
    assert Robust.from_run_config(FedAvg(), {"aggregator": "krum"}, f=1).f == 1


def test_a_fraction_means_auto_unless_f_is_a_number() -> None:
    config = {"aggregator": "krum", "byzantine-fraction": 0.2}
    assert Robust.from_run_config(FedAvg(), config).rule.declared(10) == 2
    assert Robust.from_run_config(FedAvg(), config | {"f": "auto"}).rule.declared(11) == 3
    assert Robust.from_run_config(FedAvg(), config | {"f": 1}).f == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"agregator": "krum"}, "no 'aggregator'.*did you mean agregator"),
        ({"aggregator": 3}, "aggregator must be a string, got 3"),
        ({"aggregator": "krumm", "f": 1}, "unknown operator 'krumm'; did you mean .*krum"),
        ({"aggregator": "nnm | trimed_mean", "f": 1}, "did you mean trimmed_mean"),
        ({"aggregator": "nnm", "f": 1}, "is no aggregation"),
        ({"aggregator": "krum", "f": "3"}, "f must be an integer >= 0 or 'auto', got '3'"),
        ({"aggregator": "krum", "f": 1.5}, "f must be an integer or a string, got 1.5"),
        ({"aggregator": "krum", "f": True}, "f must be an integer or a string, got True"),
        ({"aggregator": "krum", "f": -1}, "f must be an integer >= 0"),
        ({"aggregator": "krum", "f": "auto"}, "f='auto' needs fraction="),
        ({"aggregator": "krum", "byzantine-fraction": 0.5}, "must be a number >= 0 and < 0.5, got 0.5"),
        ({"aggregator": "krum", "byzantine-fraction": float("nan")}, "must be a number >= 0"),
        ({"aggregator": "momentum | krum", "f": 1, "per-layer": True}, "layerwise cannot keep the state"),
        ({"aggregator": "krum", "f": 1, "per-layer": 1}, "per-layer must be true or false, got 1"),
        ({"aggregator": "median", "exclude-after": 2}, "exclude_after needs f"),
    ],
)
def test_mistakes_are_said_when_it_is_made(config, words) -> None:
    with pytest.raises((SpecError, ValueError), match=words):
        Robust.from_run_config(FedAvg(), config)


def test_options_that_do_not_fit_together() -> None:
    with pytest.raises(SpecError, match="is for f='auto'"):
        Robust(FedAvg(), "krum", f=2, fraction=0.1)
    with pytest.raises(SpecError, match="needs a spec to fill in"):
        Robust(FedAvg(), byzflow.parse("krum(f=1)"), f="auto", fraction=0.1)


def test_auto_follows_the_number_of_sampled_nodes() -> None:
    class Growing(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            self.fraction_train = {1: 0.3, 2: 0.65, 3: 1.0}[server_round]
            return super().configure_train(server_round, arrays, config, grid)

    robust = Robust(Growing(fraction_evaluate=0.0), "trimmed_mean", f="auto", fraction=0.2)
    train(robust, grid(20), 3)
    assert [each.operator for each in robust.audit] == [f"trimmed_mean(f={f})" for f in (2, 3, 4)]
    assert [len(each.weights) for each in robust.audit] == [6, 13, 20]


@pytest.mark.parametrize(("fraction", "n", "f"), [(0.1, 30, 3), (0.2, 10, 2), (0.25, 10, 3), (0, 10, 0), (0.3, 10, 3)])
def test_a_fraction_is_rounded_up_and_not_by_rounding_errors(fraction, n, f) -> None:
    assert Robust(FedAvg(), "krum", f="auto", fraction=fraction).rule.declared(n) == f


def test_f_out_of_range_is_said_in_the_first_round_before_anything_is_sent() -> None:
    with pytest.raises(NotEnoughSenders, match=r"krum\(f=3\) needs at least 9 senders, got 7"):
        train(Robust(FedAvg(), "krum", f="auto", fraction=0.4), grid())


def test_every_layer_by_itself() -> None:
    """A lie in the small layer hides behind the large one in distances of the whole model."""

    def hides(message, arrays, metrics):
        arrays["layer.weight"] = target()["layer.weight"] / 2  # nearer to all others than they are to each other
        arrays["layer.bias"] = (target()["layer.bias"] / 2 + 0.02).astype(np.float32)
        return reply(message, arrays, metrics)

    whole, layers = Robust(FedAvg(), "krum", f=1), Robust(FedAvg(), "krum", f=1, per_layer=True)
    for robust in (whole, layers):
        train(robust, grid(hostile={3: client(hides)}), 1)
    assert whole.audit[0].weights[103] == 1
    assert layers.audit[0].weights[103] == pytest.approx(12 / 16)  # of the coordinates: the large layer alone
    assert sum(layers.audit[0].weights.values()) == pytest.approx(1)
    assert str(layers.operator) == "layerwise(rule=krum(f=1))"
    assert layers.f == 1
    assert Robust(FedAvg(), "layerwise(rule=krum)", f=1, per_layer=True).operator == layers.operator


def test_errors_are_of_one_line() -> None:
    with pytest.raises(ByzflowError) as error:
        Robust.from_run_config(FedAvg(), {"aggregator": "krumm", "f": 1})
    assert "\n" not in str(error.value)


def test_an_attack_on_a_run_with_auto() -> None:
    robust = Robust(FedAvg(), "nnm | trimmed_mean", f="auto", fraction=0.25)
    train(robust, AttackedGrid(grid(8), "sign_flip(scale=8)", f=2), 3)
    assert max(robust.audit[-1].suspicion, key=robust.audit[-1].suspicion.__getitem__) in (100, 101)
