"""The rules of gossip against loops over their definitions, and against numbers that a liar sends."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import byzflow
from byzflow.errors import ExtraError, NotEnoughSenders, SpecError
from byzflow.testing import check_operator


def lengths(rows: np.ndarray) -> list[float]:
    return [math.dist(row, rows[0]) for row in rows[1:]]


def moved(rows: np.ndarray, w: list[float], share: list[float]) -> np.ndarray:
    result = rows[0].copy()
    for j, row in enumerate(rows[1:]):
        if share[j] > 0:
            result += w[j] * share[j] * (row - rows[0])
    return result


def clipped(rows: np.ndarray, w: list[float], tau: float) -> np.ndarray:
    return moved(rows, w, [min(1.0, tau / r) if r > 0 else 1.0 for r in lengths(rows)])


def gossip(rows: np.ndarray, w: list[float], b: float) -> np.ndarray:
    return moved(rows, w, [1.0] * len(w))


def clipped_gossip(rows: np.ndarray, w: list[float], b: float) -> np.ndarray:
    weight, total = 0.0, 0.0
    for r, share in sorted(zip(lengths(rows), w, strict=True)):
        if weight >= sum(w) - b - 1e-6:
            break
        weight, total = weight + share, total + share * r * r
    return clipped(rows, w, math.sqrt(total / b))


def cs_plus(rows: np.ndarray, w: list[float], b: float) -> np.ndarray:
    weight, tau = 0.0, 0.0
    for r, share in sorted(zip(lengths(rows), w, strict=True)):
        weight += share
        if weight > sum(w) - 2 * b + 1e-6:
            break
        tau = r
    return clipped(rows, w, tau)


def gts(rows: np.ndarray, w: list[float], b: float) -> np.ndarray:
    share, left = [1.0] * len(w), b
    for r, j in sorted(((r, j) for j, r in enumerate(lengths(rows))), reverse=True):
        cut = min(left, w[j])
        share[j], left = (w[j] - cut) / w[j], left - cut
        assert r >= 0
    return moved(rows, w, share)


LOOPS: dict[str, Callable[[np.ndarray, list[float], float], np.ndarray]] = {
    "gossip": gossip, "clipped_gossip": clipped_gossip, "cs_plus": cs_plus, "gts": gts,
}  # fmt: skip
each = pytest.mark.parametrize("name", LOOPS)
robust = pytest.mark.parametrize("name", [name for name in LOOPS if name != "gossip"])


def spec(name: str, b: float) -> str:
    return name if name == "gossip" else f"{name}(b={b!r})"


@each
def test_as_the_definition_in_loops(name: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(1000 // len(LOOPS)):
        k, d = int(rng.integers(1, 12)), int(rng.integers(1, 6))
        rows = rng.normal(size=(k + 1, d)) * rng.uniform(0.1, 10, size=(k + 1, 1))
        w = rng.dirichlet(np.ones(k + 1))
        b = float(rng.uniform(0.01, 0.7))
        result = byzflow.parse(spec(name, b))(rows, weights=w)
        np.testing.assert_allclose(result, LOOPS[name](rows, w[1:].tolist(), b), rtol=1e-9, atol=1e-9)


@each
def test_without_weights_each_row_weighs_as_much_and_f_neighbours_are_byzantine(name: str) -> None:
    rows = np.random.default_rng(1).normal(size=(9, 4))
    result = byzflow.parse(name, f=2)(rows)
    np.testing.assert_allclose(result, LOOPS[name](rows, [1 / 9] * 8, 2 / 9), rtol=1e-9)
    again = byzflow.parse(name, f=2)(rows, weights=np.full(9, 1 / 9))
    np.testing.assert_allclose(result, again, rtol=1e-12)


@robust
def test_f_is_the_weight_of_the_heaviest_neighbours(name: str) -> None:
    rows = np.random.default_rng(2).normal(size=(7, 3))
    w = np.array([0.1, 0.05, 0.3, 0.1, 0.15, 0.2, 0.1])
    result = byzflow.parse(name, f=2)(rows, weights=w)
    np.testing.assert_allclose(result, LOOPS[name](rows, w[1:].tolist(), 0.5), rtol=1e-9)


@pytest.mark.parametrize(("k", "weight", "b"), [(10, 0.1, 0.2), (4, 0.3, 0.4)])
def test_gts_splits_the_weight_at_the_boundary(k: int, weight: float, b: float) -> None:
    """The authors' code keeps 0.7 in both."""
    rows = torch.arange(k + 1.0)[:, None]
    for dtype in (torch.float64, torch.float32):
        w = torch.tensor([1 - k * weight, *[weight] * k], dtype=dtype)
        kept = byzflow.parse(f"gts(b={b})").explain(rows, weights=w).weights
        assert kept is not None
        assert float(kept[1:].sum()) == pytest.approx(0.8, abs=1e-7)
        assert float(kept[-1]) == 0


def test_cs_plus_at_the_ends_of_b() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    assert float(byzflow.parse("cs_plus(b=0)")(rows)) == pytest.approx(2)
    assert float(byzflow.parse("cs_plus(b=0.41)")(rows)) == 0  # all of 0.8 is less than twice b
    assert float(byzflow.parse("cs_plus(b=0.2)")(rows)) == pytest.approx((1 + 2 + 2 + 2) / 5)
    assert float(byzflow.parse("cs_plus(b=0.2, step=0.5)")(rows)) == pytest.approx((1 + 2 + 2 + 2) / 10)
    assert float(byzflow.parse("clipped_gossip(b=0)")(rows)) == pytest.approx(2)
    assert float(byzflow.parse("clipped_gossip(tau=0)")(rows)) == 0


@robust
@pytest.mark.parametrize("b", [1e-7, 1e-9, 1e-320])
def test_a_b_of_nearly_nothing_is_borne(name: str, b: float) -> None:
    """As small as what rounding is allowed, or smaller."""
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [1e30]])
    w = np.array([0.25 - b, 0.25, 0.25, 0.25, b])
    assert 0 <= float(byzflow.parse(spec(name, b))(rows, weights=w)[0]) < 4 / math.sqrt(b)


def test_adaptive_clipping_counts_more_than_one_liar() -> None:
    """N13: the second largest distance would let one of two far liars set the length."""
    rows = torch.tensor([[0.0], *[[1.0]] * 6, [1e9], [1e9]], dtype=torch.float64)
    assert float(byzflow.parse("clipped_gossip(f=2)")(rows)) == pytest.approx((6 + 2 * math.sqrt(3)) / 9)


@each
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("policy", ["reject", "keep"])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_row_that_is_not_finite_counts_as_the_own_one(name: str, value: float, policy: str, weighted: bool) -> None:
    rows = np.random.default_rng(3).normal(size=(8, 3))
    w = np.array([0.2, 0.1, 0.15, 0.05, 0.1, 0.1, 0.2, 0.1]) if weighted else np.full(8, 1 / 8)
    bad = rows.copy()
    bad[[2, 5], 1] = value
    clean = rows.copy()
    clean[[2, 5]] = rows[0]
    rule = byzflow.parse(spec(name, 0.3))
    extras = {"weights": w} if weighted else {}
    found = rule.explain(bad, nonfinite=policy, **extras)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.value, LOOPS[name](clean, w[1:].tolist(), 0.3), rtol=1e-9)
    if policy == "reject":
        assert found.rejected == (2, 5)


@robust
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("huge", [1e18, 1e30, -1e30, 3e38])
def test_a_huge_row_moves_the_result_no_further_than_others(name: str, dtype: torch.dtype, huge: float) -> None:
    rows = torch.from_numpy(np.random.default_rng(4).normal(size=(8, 3))).to(dtype)
    for place in (1, 7):
        bad = rows.clone()
        bad[place] = huge
        value = byzflow.parse(name, f=1)(bad)
        assert bool(torch.isfinite(value).all())
        assert float((value - rows[0]).norm()) < 8


@robust
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("huge", [1e8, 1e12, 1e30])
def test_light_liars_may_be_most_of_the_rows(name: str, dtype: torch.dtype, huge: float) -> None:
    """Beside so many huge rows nothing is left of the honest distances in the inner products."""
    rng = np.random.default_rng(8)
    rows, w = rng.normal(size=(10, 3)).astype(np.float32), np.full(10, 0.01)
    w[:4] = 0.19, 0.25, 0.25, 0.25
    far = rows.astype(np.float64)
    far[4:] *= 1e8
    bad = torch.from_numpy(rows).to(dtype)
    bad[4:] *= huge
    value = byzflow.parse(f"{name}(b=0.06)")(bad, weights=w)
    np.testing.assert_allclose(value, LOOPS[name](far, w[1:].tolist(), 0.06), rtol=1e-6, atol=1e-6)


def test_float64_rows_whose_distances_overflow() -> None:
    rows = np.zeros((5, 2))
    rows[1:4] = 1
    rows[4] = 1e200
    for name in ("clipped_gossip(f=1)", "cs_plus(f=1)", "gts(f=1)", "clipped_gossip(tau=1)"):
        value = byzflow.parse(name)(rows)
        assert np.isfinite(value).all()
        assert np.abs(value).max() < 2


def test_what_is_refused() -> None:
    rows = torch.randn(5, 2, dtype=torch.float64)
    with pytest.raises(NotEnoughSenders, match="needs at least 7 senders, got 5"):
        byzflow.parse("gts(f=3)")(rows)
    with pytest.raises(SpecError, match="needs f, the neighbours that may be Byzantine, or b"):
        byzflow.parse("cs_plus")(rows)
    refused = [
        ([0.5] * 5, "sum to 1"),
        ([0.5] * 2, "one number a row: 5, got 2"),
        ([0.5, -0.5, 0.5, 0.25, 0.25], "neighbour's weight is -0.5"),
        ([math.nan] * 5, "finite"),
    ]
    for w, message in refused:
        with pytest.raises(ExtraError, match=message):
            byzflow.parse("gts(b=0.1)")(rows, weights=w)
    rows[0, 0] = math.nan
    with pytest.raises(SpecError, match="reference row holds NaN"):
        byzflow.parse("gts(b=0.1)")(rows)


def test_an_own_row_elsewhere_and_neighbours_without_one() -> None:
    rows = np.random.default_rng(6).normal(size=(6, 2))
    turned = rows[[1, 2, 0, 3, 4, 5]]
    expected = byzflow.parse("cs_plus(f=1)")(rows)
    np.testing.assert_allclose(byzflow.parse("cs_plus(f=1, reference_index=2)")(turned), expected, rtol=1e-12)
    silent = byzflow.parse("cs_plus(f=1, absent=2)")(rows)
    alike = byzflow.parse("cs_plus(f=1)")(np.concatenate([rows, rows[:1], rows[:1]]))
    np.testing.assert_allclose(silent, alike, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["clipped_gossip(f=2, reference_index=3)", "nnm(f=1) | cs_plus(f=1, reference_index=3)"]
)
def test_the_contract_where_the_clipping_is_adaptive_and_in_chains(name: str) -> None:
    check_operator(name)
