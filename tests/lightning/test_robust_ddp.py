"""RobustDDP in real processes: equal to plain DDP with the mean, right under attack, refused where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest

Found = dict[str, Any]


def test_the_mean_is_plain_ddp_for_every_feature_and_mechanism(matrix: Found) -> None:
    """17 features x 3 mechanisms: equal to 1e-6 with identical replicas, or refused before anything was trained."""
    assert len(matrix) == 51
    for name, found in matrix.items():
        if "refused" in found:
            assert name.endswith("/ overlap"), name
            assert found["refused"].startswith("overlap=True needs"), name
            assert not found["trained"], name
            continue
        assert found["difference"] <= 1e-6, name
        assert found["moved"] > 1e-3, name
        assert found["identical"], name


def test_only_what_must_be_is_refused(matrix: Found) -> None:
    refused = {name for name, found in matrix.items() if "refused" in found}
    no_overlap = ("16-mixed", "16-mixed fused", "two optimisers", "clip by hand")
    assert refused == {f"{name} / overlap" for name in no_overlap}


def test_gradients_enter_the_rule_as_each_rank_made_them(matrix: Found) -> None:
    """Plain DDP has averaged them by then, and so has an exchange that overlaps the backward pass."""
    for name, found in matrix.items():
        if "refused" in found:
            continue
        accumulates = "accumulation" in name  # all but the last backward pass are each rank's own anyway
        if not accumulates:
            assert found["spread of plain DDP"] < 1e-6, name
        if name.endswith("/ overlap"):
            assert accumulates or found["spread"] < 1e-6, name
        else:
            assert found["spread"] > 1e-3, name


@pytest.mark.parametrize("attack", ["foe(tau=10)", "alie(z=40)"])
def test_one_liar_of_four_ruins_the_mean_and_not_the_rule(four: Found, attack: str) -> None:
    found = four["protection"]
    assert found[f"{attack} / mean"]["accuracy"] < 0.7
    for operator in ("median", "nnm | trimmed_mean"):
        assert found[f"{attack} / {operator}"]["accuracy"] > 0.9
        assert found[f"{attack} / {operator}"]["identical"]


@pytest.mark.parametrize("fault", ["nan", "absent"])
@pytest.mark.parametrize("operator", ["mean", "median", "nnm | trimmed_mean"])
def test_a_broken_rank_is_left_out_and_named(four: Found, fault: str, operator: str) -> None:
    found = four["protection"][f"{fault} / {operator}"]
    assert found["accuracy"] > 0.9
    assert found["identical"]
    assert found["left out"] == {"3": found["steps"]}


def test_half_precision_goes_on_with_a_nan_rank(four: Found) -> None:
    found = four["protection"]["16-mixed nan / median"]
    assert found["accuracy"] > 0.9
    assert found["identical"]  # the loss scale too
    assert found["scale"] == 1024


def test_half_precision_backs_off_on_every_rank_when_more_than_f_overflow(four: Found) -> None:
    found = four["protection"]["16-mixed nan / mean"]  # f = 0
    assert found["identical"]
    assert found["scale"] < 1


def test_buckets_do_not_change_the_rule(four: Found) -> None:
    assert four["uses"]["overlap"]["difference"] <= 1e-6
    assert four["uses"]["overlap"]["identical"]


@pytest.mark.parametrize("precision", ["32", "16"])
def test_a_step_without_a_sound_gradient_changes_nothing(four: Found, precision: str) -> None:
    found = four["uses"]["skipped"][precision]
    assert not found["moved"]
    assert found["skipped"] == 5
    assert found["left out"] == {str(rank): 5 for rank in range(4)}
    assert "NaN or Inf" in found["why"]
    if precision == "16":
        assert found["scale"] == 1024 / 2**5


@pytest.mark.parametrize(("batches", "rank"), [("nan", "0"), ("empty", "3"), ("empty, overlap", "3")])
def test_a_rank_without_a_good_batch_is_left_out(four: Found, batches: str, rank: str) -> None:
    """Also rank 0, whose BatchNorm statistics plain DDP would give to all."""
    found = four["uses"]["starved"][batches]
    assert found["accuracy"] > 0.9
    assert found["finite"]
    assert found["identical"]
    assert found["left out"] == {rank: 15}


def test_only_gathering_survives_a_rank_that_falsifies_its_share(four: Found) -> None:
    """The threat model, in both directions."""
    found = four["uses"]["falsified"]
    assert found["shard"]["largest"] > 100
    assert found["gather"]["largest"] < 10
    assert found["gather"]["accuracy"] > 0.9


def test_what_is_logged(four: Found) -> None:
    found = four["uses"]["logged"]
    assert {"robust/rejected", "robust/seconds", *(f"robust/weight/{rank}" for rank in range(4))} <= set(
        found["header"]
    )
    assert found["bar"] == ["robust/rejected"]


def test_a_rule_with_a_memory_resumes_exactly(four: Found) -> None:
    assert len(four["uses"]["resumed"]) == 4
    for name, found in four["uses"]["resumed"].items():
        assert found == {"exact": True, "went on": True, "identical": True, "remembers": True}, name
    assert four["uses"]["other_world"] == ("SpecError: the checkpoint has momentum of 5 ranks, and now there are 4")


def test_parameters_that_thaw_are_aggregated(four: Found) -> None:
    assert four["uses"]["unfrozen"] == {"identical": True, "moved": True}


def test_rules_on_whole_gradients_run_where_those_are(four: Found) -> None:
    assert four["uses"]["layerwise"] == {"identical": True}


def test_fabric_does_the_same(four: Found) -> None:
    assert four["uses"]["fabric"]["difference"] <= 1e-6
    assert four["uses"]["fabric"]["identical"]


def test_pytorch_lightning_takes_it_too(four: Found) -> None:
    assert four["uses"]["other_namespace"] == {"identical": True, "steps": 5, "operator": "median(f=1)"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("too few", "NotEnoughSenders: krum(f=1) needs at least 5 senders, got 4: each rank is one"),
        ("whole rows", "SpecError: the rule looks at coordinates"),
        ("needs more", "SpecError: fltrust(f=1) cannot reduce gradients: the rule needs 'server'"),
        ("lbfgs", "SpecError: LBFGS decides by each rank's own loss"),
        ("sparse", "SpecError: table gives sparse gradients"),
        ("two optimisers", "SpecError: overlap=True needs automatic optimisation"),
        ("own hook", "SpecError: RobustDDP takes the place of DDP's communication hook"),
        ("one device", "SpecError: RobustDDP does not work with SingleDeviceStrategy"),
    ],
)
def test_refused_before_training(four: Found, what: str, message: str) -> None:
    assert four["uses"]["refused"][what].startswith(message)
    assert "\n" not in four["uses"]["refused"][what]
