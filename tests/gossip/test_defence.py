"""The rule of one node: who was rejected and missing is said by name, and costs nobody else anything."""

from __future__ import annotations

import pytest
import torch

from byzflow.errors import SpecError
from byzflow.gossip.defence import Defence
from byzflow.gossip.effects import Heard


def heard(*rows: list[float] | object, missing: tuple[int, ...] = ()) -> Heard:
    values = {i: torch.tensor(row) if isinstance(row, list) else row for i, row in enumerate(rows)}
    return Heard(values, missing)


def test_what_does_not_fit_is_rejected_by_name() -> None:
    rows = heard(
        [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [9.0], "words", [float("nan"), 0.0], torch.ones(2, dtype=torch.int64)
    )
    verdict = Defence("trimmed_mean", f=1).aggregate(rows)
    assert verdict.value.tolist() == [2.0, 2.0]
    assert verdict.rejected == {
        3: "1 numbers of float32, not 2 numbers of float32",
        4: "no vector of floating numbers",
        5: "NaN or Inf",
        6: "no vector of floating numbers",
    }
    assert verdict.rule == "trimmed_mean(f=0)"
    assert verdict.weights[5] == 0


def test_the_own_row_is_the_first_and_the_measure() -> None:
    verdict = Defence("mean").aggregate(heard([3.0, 3.0], [1.0], [2.0]), own=("me", torch.tensor([1.0, 1.0])))
    assert verdict.value.tolist() == [2.0, 2.0]
    assert set(verdict.rejected) == {1, 2}


def test_silent_neighbours_shrink_f_only_as_far_as_they_must() -> None:
    rows = heard([1.0], [2.0], [3.0], missing=(3, 4))
    verdict = Defence("krum", f=1).aggregate(rows)
    assert verdict.rule == "krum(f=0)"
    verdict = Defence("trimmed_mean", f=1).aggregate(rows)
    assert verdict.rule == "trimmed_mean(f=1)"


def test_too_few_rows_are_no_step_and_no_error() -> None:
    verdict = Defence("krum", f=2).aggregate(heard([1.0], [2.0]))
    assert verdict.value is None
    assert "needs at least" in verdict.problem
    assert Defence("mean").aggregate(heard()).problem == "no reply counts"


def test_mixing_weights_go_to_rules_that_take_them_and_missing_ones_to_the_own_row() -> None:
    weights = {"me": 0.25, 0: 0.25, 1: 0.5}
    me = ("me", torch.tensor([0.0]))
    assert Defence("gossip").aggregate(heard([1.0], [2.0]), me, weights).value.item() == pytest.approx(1.25)
    assert Defence("gossip").aggregate(heard([1.0], missing=(1,)), me, weights).value.item() == pytest.approx(0.25)
    assert Defence("mean").aggregate(heard([1.0], [2.0]), me, weights).value.item() == pytest.approx(1.0)


def test_a_rule_with_a_memory_keeps_it_by_node() -> None:
    defence = Defence("centered_clipping(f=0, tau=1.0, iterations=1)")
    first = defence.aggregate(heard([4.0], [4.0])).value.item()
    second = defence.aggregate(heard([4.0], [4.0])).value.item()
    assert 0 < first < second <= 4


def test_what_is_no_aggregation_is_refused() -> None:
    for spec in ("nnm(f=1)", "alie(f=1)"):
        with pytest.raises(SpecError, match="no aggregation"):
            Defence(spec)


def test_colluders_have_no_vote_on_what_a_vector_looks_like_once_there_was_one() -> None:
    defence = Defence("median")
    defence.aggregate(heard([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]))
    verdict = defence.aggregate(heard([1.0, 2.0], [9.0], [9.0]))
    assert verdict.value.tolist() == [1.0, 2.0]
    assert set(verdict.rejected) == {1, 2}


def test_silence_leaves_f_whole_where_the_own_row_stands_for_the_silent() -> None:
    """Two liars, and an honest neighbour that is late: with a smaller f they would have the result."""
    me, liars = ("me", torch.tensor([1.0])), {8: torch.tensor([1e6]), 9: torch.tensor([1e6])}
    for late in ((1,), (1, 2)):
        came = {} if 2 in late else {2: torch.tensor([2.0])}
        for spec in ("trimmed_mean", "median", "nnm | trimmed_mean", "geometric_median", "monna(reference_index=0)"):
            verdict = Defence(spec, f=2).aggregate(Heard(came | liars, late), me)
            assert verdict.value.item() < 3, spec
            assert "f=1" not in verdict.rule
            assert verdict.missing == late
    enough = Defence("trimmed_mean", f=1).aggregate(Heard({1: torch.tensor([2.0]), 2: torch.tensor([4.0])}, (3,)), me)
    assert enough.value.item() == 2.0
    assert enough.weights == pytest.approx({"me": 1 / 3, 1: 1 / 3, 2: 1 / 3}, abs=1)


def test_a_rule_with_mixing_weights_gives_the_silent_ones_weight_to_the_own_row() -> None:
    weights = {"me": 0.2, **dict.fromkeys(range(4), 0.2)}
    me = ("me", torch.tensor([0.0]))
    for spec in ("cs_plus", "gts", "clipped_gossip"):
        silent = Defence(spec, f=2).aggregate(heard([1.0], [1e6], missing=(2, 3)), me, weights)
        alike = Defence(spec, f=2).aggregate(heard([1.0], [1e6], [0.0], [0.0]), me, weights)
        assert silent.value.item() == pytest.approx(alike.value.item())
        assert sum(silent.weights.values()) == pytest.approx(1)


def test_an_own_row_that_is_not_finite_is_no_liar() -> None:
    me = ("me", torch.tensor([float("nan")]))
    verdict = Defence("trimmed_mean", f=1).aggregate(heard([1.0], [2.0], [1e6]), me)
    assert verdict.value.item() == 2.0
    assert verdict.rejected == {"me": "NaN or Inf"}
    verdict = Defence("trimmed_mean", f=1).aggregate(heard([1.0], [1e6], missing=(2,)), me)
    assert verdict.value is None
    assert "needs at least 3 senders, got 2" in verdict.problem
    assert "reference row" in Defence("cs_plus", f=1).aggregate(heard([1.0], [2.0], [3.0]), me).problem


@pytest.mark.parametrize("odd", [torch.zeros(1).to_sparse(), torch.ones(1, device="meta")])
def test_a_vector_that_is_stored_otherwise_costs_its_sender_alone(odd: torch.Tensor) -> None:
    for own in (None, ("me", torch.tensor([2.0]))):
        verdict = Defence("trimmed_mean", f=1).aggregate(heard([1.0], [2.0], [3.0], odd), own)
        assert verdict.value.item() == 2.0
        assert set(verdict.rejected) == {3}
