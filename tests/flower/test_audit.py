"""Who is heard, how far off, how suspect, and who is asked no more."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

import byzflow
from byzflow.errors import ByzflowError
from byzflow_flower import AttackedGrid, Rejection, Robust, RoundAudit, audit_file
from byzflow_flower.standing import Standing
from tests.flower.federation import CLIENTS, client, distance, grid, numpy, reply, train
from tests.flower.test_robust import Losing, fails

ALL = {100 + place for place in range(CLIENTS)}


def far(message, arrays, metrics):
    return reply(message, {name: values + 1000 for name, values in arrays.items()}, metrics)


def wrong_keys(message, arrays, metrics):
    return reply(message, {"x": np.zeros(1, np.float32)}, metrics)


def odd_metric(message, arrays, metrics):
    return reply(message, arrays, metrics | {"more": 1.0})


# -- distances and suspicion


@pytest.mark.parametrize("spec", ["multi_krum", "nnm | krum", "trimmed_mean", "arc | nnm | trimmed_mean", "cge"])
def test_distances_are_those_of_the_updates_to_the_one_result(spec: str) -> None:
    sent = {}

    def tell(message, arrays, metrics):
        sent[message.metadata.dst_node_id] = {name: values.copy() for name, values in arrays.items()}
        return reply(message, arrays, metrics)

    robust = Robust(FedAvg(), spec, f=2)
    result = train(robust, grid(hostile=dict.fromkeys(range(CLIENTS), client(tell))), 1)
    new, audit = numpy(result.arrays), robust.audit[0]
    assert audit.distances.keys() == ALL
    for node, arrays in sent.items():
        expected = np.sqrt(sum(np.square(arrays[name].astype(float) - new[name]).sum() for name in arrays))
        assert audit.distances[node] == pytest.approx(expected, abs=1e-5)
    assert result.train_metrics_clientapp[1]["robust-distance/103"] == audit.distances[103]


@pytest.mark.parametrize("spec", ["krum", "median", "nnm | trimmed_mean", "geometric_median", "sign_majority"])
def test_the_suspicion_of_liars_nears_1_and_that_of_honest_ones_stays_near_0(spec: str) -> None:
    robust = Robust(FedAvg(), spec, f=2)
    train(robust, grid(hostile={0: client(far), 1: client(wrong_keys)}), 12)
    suspicion = robust.audit[-1].suspicion
    assert suspicion.keys() == ALL
    assert min(suspicion[100], suspicion[101]) > 0.8
    assert max(suspicion[node] for node in ALL - {100, 101}) < 0.25
    assert [each.suspicion[101] for each in robust.audit[:3]] == pytest.approx([0.2, 0.36, 0.488])


def test_silence_and_errors_make_nobody_suspect() -> None:
    robust = Robust(FedAvg(), "median", f=2)
    train(robust, Losing(grid(hostile={0: client(fails)}), lost={101}), 3)
    assert robust.audit[-1].suspicion.keys() == ALL - {100, 101}
    assert max(robust.audit[-1].suspicion.values()) < 0.25


def test_the_mean_suspects_nobody() -> None:
    robust = Robust(FedAvg(), "mean")
    train(robust, grid(hostile={0: client(far)}), 2)
    assert set(robust.audit[-1].suspicion.values()) == {0.0}


def test_one_judgement() -> None:
    distances = {1: 1.0, 2: 1.0, 3: 1.5, 4: 9.0, 5: 9.0, 7: 1.5, 8: 2.625}
    weights = {1: 0.2, 2: 0.2, 3: 0.1, 4: 0.0, 5: 0.4, 7: 0.1, 8: 0.0}
    found = Standing().after(weights, distances, [Rejection(6, "bytes")], f=1).suspicion
    assert found == pytest.approx({1: 0, 2: 0, 3: 0, 4: 0.2, 5: 0, 6: 0.2, 7: 0, 8: 0.1})  # the median is 1.5
    same = Standing().after({1: 0.0, 2: 0.0, 3: 1.0}, dict.fromkeys((1, 2, 3), 0.0), [], f=1).suspicion
    assert set(same.values()) == {0.0}  # all equal: nobody is far
    assert Standing().after({}, {}, [], f=1) == Standing()


# -- exclusion


def counting(asked):
    def answer(message, arrays, metrics):
        asked.append(int(message.content["config"]["server-round"]))
        return wrong_keys(message, arrays, metrics)

    return client(answer)


def test_a_node_is_asked_no_more_after_k_malformed_replies() -> None:
    asked: list[int] = []
    robust = Robust(FedAvg(), "trimmed_mean", f=2, exclude_after=2)
    result = train(robust, grid(hostile={3: counting(asked)}), 5)
    assert asked == [1, 2]
    assert [each.excluded for each in robust.audit] == [(), (103,), (103,), (103,), (103,)]
    assert [len(each.rejected) for each in robust.audit] == [1, 1, 0, 0, 0]
    assert {each.operator for each in robust.audit} == {"trimmed_mean(f=1)"}  # used up by the reply, then the exclusion
    assert robust.audit[1].suspicion[103] == 1
    assert len(robust.evaluate_audit[-1].rejected) == 0
    assert result.train_metrics_clientapp[5]["robust-excluded/103"] == 1
    assert distance(result.arrays) < 1


def test_without_the_option_nobody_is_excluded() -> None:
    asked: list[int] = []
    train(Robust(FedAvg(), "trimmed_mean", f=2), grid(hostile={3: counting(asked)}), 3)
    assert asked == [1, 2, 3]


@pytest.mark.parametrize("answer", [far, fails, odd_metric])
def test_weight_0_errors_and_what_only_others_show_exclude_nobody(answer) -> None:
    robust = Robust(FedAvg(), "krum", f=1, exclude_after=1)
    train(robust, grid(hostile={3: client(answer)}), 4)
    assert not any(each.excluded for each in robust.audit)


def test_more_malformed_replies_than_f_exclude_nobody() -> None:
    """So many at once are a fault of the app, such as float64 weights: excluding them would end the training."""
    robust = Robust(FedAvg(), "trimmed_mean", f=1, exclude_after=1)
    train(robust, grid(hostile={0: client(wrong_keys), 1: client(wrong_keys)}), 3)
    assert not any(each.excluded for each in robust.audit)


def test_others_cannot_have_an_honest_node_excluded() -> None:
    """Colluders who agree on a metric's name are most of the replies that arrive: honest ones look odd beside them."""
    colluding = dict.fromkeys(range(3), client(odd_metric))
    robust = Robust(FedAvg(), "trimmed_mean", f=3, exclude_after=1)
    train(robust, Losing(grid(hostile=colluding), lost={105, 106}), 3)
    assert {each.node_id for each in robust.audit[0].rejected if each.malformed} == {103, 104}
    assert not any(each.excluded for each in robust.audit)


def test_when_all_nodes_are_excluded_the_run_ends_in_order() -> None:
    everyone = dict.fromkeys(range(2), client(wrong_keys))
    robust = Robust(FedAvg(), "mean", f=2, exclude_after=1)
    result = train(robust, grid(2, hostile=everyone), 3)
    assert robust.audit[-1].excluded == (100, 101)
    np.testing.assert_array_equal(numpy(result.arrays)["layer.bias"], np.zeros(4))


def test_strikes_and_suspicion_survive_a_checkpoint(tmp_path: Path) -> None:
    first = Robust(FedAvg(), "momentum | trimmed_mean", f=2, exclude_after=2)
    train(first, grid(hostile={3: client(wrong_keys)}), 1)
    first.save(tmp_path / "rule.safetensors")
    second = Robust(FedAvg(), "momentum | trimmed_mean", f=2, exclude_after=2)
    second.resume(tmp_path / "rule.safetensors")
    train(second, grid(hostile={3: client(wrong_keys)}), 1)
    assert second.audit[0].excluded == (103,)
    assert second._trail.standing.suspicion[103] == pytest.approx(0.36)


@pytest.mark.parametrize(("options", "words"), [({"exclude_after": 0}, ">= 1, got 0"), ({"f": 0}, "needs f")])
def test_exclusion_needs_a_count_and_an_f(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        Robust(FedAvg(), "median", **{"f": 1, "exclude_after": 2} | options)


# -- files


def test_the_file_holds_what_the_audit_holds(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    robust = Robust(FedAvg(), "nnm | trimmed_mean", f=2, audit_file=path, exclude_after=2)
    train(robust, grid(hostile={0: client(fails), 3: client(wrong_keys)}), 3)
    found = audit_file.read(path)
    assert [each for each in found if each.step == "train"] == robust.audit
    assert [each for each in found if each.step == "evaluate"] == robust.evaluate_audit
    assert len(audit_file.runs(found)) == 1
    again = Robust(FedAvg(), "median", audit_file=path)
    train(again, grid(), 2)
    first, second = audit_file.runs(audit_file.read(path))
    assert len(first) == 6
    assert [each for each in second if each.step == "train"] == again.audit


def test_a_line_that_a_crash_cut_off_is_left_out_and_other_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = RoundAudit(1, "median", {5: float("nan")}, distances={5: float("inf")})
    audit_file.append(path, audit)
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    (found,) = audit_file.read(path)
    assert np.isnan(found.weights[5])
    for damage in ("{}\n", "[1]\n", "nonsense\n", '{"round": "x"}\n', "[" * 100_000 + "\n"):
        path.write_text(whole + damage)
        with pytest.raises(ByzflowError, match=r"line 2 is no round of an audit"):
            audit_file.read(path)
    for data, words in ((b"", "holds no round"), (b"\xff\n", "cannot read")):
        path.write_bytes(data)
        with pytest.raises(ByzflowError, match=words):
            audit_file.read(path)
    with pytest.raises(ByzflowError, match="cannot read"):
        audit_file.read(tmp_path / "nothing")


def test_a_file_that_cannot_be_written_is_an_error_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ByzflowError, match="cannot write the audit to"):
        Robust(FedAvg(), "median", audit_file=tmp_path / "no" / "folder.jsonl")


def test_a_file_that_fails_later_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gone").mkdir()
    robust = Robust(FedAvg(), "median", audit_file=tmp_path / "gone" / "a.jsonl")
    (tmp_path / "gone" / "a.jsonl").unlink()
    (tmp_path / "gone").rmdir()
    train(robust, grid(), 1)
    assert "the audit of round 1 is not written" in caplog.text


def test_tensorboard_gets_the_same_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = {}

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path)

        def add_scalar(self, name, value, step):
            written[name, step] = value

        def flush(self):
            pass

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    robust = Robust(FedAvg(), "median", tensorboard_dir=tmp_path)
    train(robust, grid(), 2)
    assert written["train/robust-weight/103", 2] == robust.audit[1].weights[103]
    assert written["train/robust-distance/103", 1] == robust.audit[0].distances[103]


def test_without_tensorboard_it_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ByzflowError, match="pip install tensorboard"):
        Robust(FedAvg(), "median", tensorboard_dir=tmp_path)


def test_every_installed_aggregation_that_needs_no_extras_is_audited() -> None:
    given = {"centered_clipping": "tau=3", "monna": "reference_index=0", "huber": "threshold=3", "rlr": "threshold=2"}
    given |= {"gas": "rule=krum", "layerwise": "rule=krum"}
    for entry in byzflow.installed().of_kind("aggregator"):
        name = entry.operator.name
        if name == "fltrust":  # needs an update of the server's own
            continue
        robust = Robust(FedAvg(fraction_evaluate=0.0), f"{name}({given[name]})" if name in given else name, f=1)
        train(robust, AttackedGrid(grid(9), "sign_flip(scale=9)", f=1), 2)
        audit = robust.audit[-1]
        assert not audit.kept_model, name
        assert all(np.isfinite(list(audit.distances.values()))), name
        assert len(audit.distances) == 9, name
        assert all(0 <= score <= 1 for score in audit.suspicion.values()), name
