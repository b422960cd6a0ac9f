"""The numerics contract: centring, non-finite rows, huge rows, the weights of the audit, tiles."""

from __future__ import annotations

import pytest
import torch

import byzflow
from byzflow.engine import passes
from byzflow.engine.audit import distances
from byzflow.errors import ExtraError, NonFiniteRows, NotEnoughSenders
from byzflow.gram import nearest, smallest
from byzflow.rows import Rows

SPECS = ["mean", "median", "trimmed_mean", "krum", "geometric_median", "nnm | trimmed_mean", "arc | nnm | krum"]


def rows(n: int = 10, d: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [100.0, 1000.0])
@pytest.mark.parametrize("spec", ["krum", "multi_krum", "nnm | krum"])
def test_a_common_offset_does_not_hide_the_attackers(spec: str, offset: float) -> None:
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        center = offset * torch.randn(1000, generator=g)
        honest = center + 0.01 * torch.randn(7, 1000, generator=g)
        bad = center + 0.05 * torch.randn(3, 1000, generator=g)
        weights = byzflow.parse(spec, f=3).explain(torch.cat([bad, honest])).weights
        assert weights is not None
        assert weights[:3].sum() == 0


@pytest.mark.parametrize("spec", SPECS)
def test_the_size_of_a_tile_does_not_matter(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(12, 3000).double()
    one = byzflow.aggregate(spec, x, f=2)
    monkeypatch.setattr(passes, "TILE_ELEMENTS", 1200)
    other = byzflow.aggregate(spec, x, f=2)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if spec in ("median", "trimmed_mean"):
        assert torch.equal(one, other)


def test_policies_for_rows_that_are_not_finite() -> None:
    x = rows()
    x[3, 7] = torch.nan
    x[9, 0] = torch.inf
    kept = [i for i in range(10) if i not in (3, 9)]
    for spec in SPECS:
        result = byzflow.parse(spec, f=2).explain(x)
        assert result.rejected == (3, 9)
        assert not result.bound_exceeded
        assert result.n == 8
        expected = byzflow.aggregate(spec, x[kept], f=0)
        torch.testing.assert_close(result.value, expected)
        assert result.weights is not None
        assert result.weights[[3, 9]].abs().sum() == 0
        with pytest.raises(NonFiniteRows, match="rows 3, 9 hold NaN or Inf"):
            byzflow.aggregate(spec, x, f=2, nonfinite="raise")
    assert byzflow.parse("krum", f=1).explain(x).bound_exceeded


def test_keep_counts_rows_that_are_not_finite_as_far_away() -> None:
    x = rows()
    x[0, 3] = torch.nan
    x[9] = -torch.inf
    for spec in ("krum", "multi_krum", "geometric_median", "nnm | krum", "trimmed_mean", "median"):
        value = byzflow.aggregate(spec, x, f=2, nonfinite="keep")
        assert torch.isfinite(value).all(), spec
    with pytest.raises(NotEnoughSenders):
        byzflow.aggregate("krum", x[:6], f=2, nonfinite="keep")


def test_shrinking_may_leave_too_few() -> None:
    x = rows(7)
    x[:3] = torch.nan
    with pytest.raises(NotEnoughSenders, match=r"krum\(f=2\) needs at least 7 senders, got 4"):
        byzflow.aggregate("krum(f=5)", x)


@pytest.mark.parametrize("spec", SPECS[1:])
def test_one_huge_row_moves_nothing_far(spec: str) -> None:
    x = rows()
    for where in (0, 9):
        for huge in (1e18, 1e30, -3e38):
            y = x.clone()
            y[where] = huge
            assert (byzflow.aggregate(spec, y, f=2) - x.mean(0)).abs().max() < 3, (spec, where, huge)
    y = x.double()
    y[0] = 1e300
    assert (byzflow.aggregate(spec, y, f=2) - x.mean(0)).abs().max() < 3


@pytest.mark.parametrize("spec", [*SPECS, "clipping(c=3) | median", "bucketing | geometric_median"])
def test_weights_are_the_share_of_each_row(spec: str) -> None:
    x = rows(12, 64).double()
    result = byzflow.parse(spec, f=2).explain(x)
    assert result.weights is not None
    assert result.weights.shape == (12,)
    if "arc" not in spec and "clipping" not in spec:
        assert abs(float(result.weights.sum()) - 1) < 1e-9
    if ("median" not in spec.split("|")[-1] and "trimmed" not in spec) or "geometric" in spec:
        torch.testing.assert_close(result.weights @ x, result.value)


def test_column_weights_are_ranks_taken() -> None:
    x = torch.tensor([[0.0, 9.0], [1.0, 1.0], [2.0, 2.0], [9.0, 0.0], [3.0, 3.0]])
    weights = byzflow.parse("median").explain(x).weights
    assert weights is not None
    assert weights.tolist() == [0, 0, 1, 0, 0]
    weights = byzflow.parse("trimmed_mean(f=1)").explain(x).weights
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([0, 1, 1, 0, 1.0]).double() / 3)


def test_state_carries_the_round() -> None:
    x = rows(9)
    operator = byzflow.parse("bucketing | median")
    first = operator.explain(x)
    second = operator.explain(x, **first.state)
    assert second.state == {"round": 2}
    assert not torch.equal(first.value, second.value)
    assert torch.equal(operator.explain(x, **first.state).value, second.value)


def test_extras_are_checked() -> None:
    x = rows(4)
    with pytest.raises(ExtraError, match=r"median does not take 'center'; it takes sample_weights"):
        byzflow.aggregate("median", x, center=x[0])
    with pytest.raises(ExtraError, match="each of 0 to 3 once"):
        byzflow.aggregate("bucketing", x, permutation=[0, 1, 2, 2])
    for wrong in ([1, 2, 3], [1, 1, 1, -1], [1, 1, 1, float("nan")], [0, 0, 0, 0]):
        with pytest.raises(ExtraError, match="sample_weights"):
            byzflow.aggregate("mean", x, sample_weights=wrong)


def test_sample_weights_weigh() -> None:
    x = rows(4)
    torch.testing.assert_close(byzflow.aggregate("mean", x, sample_weights=[1, 0, 3, 0]), (x[0] + 3 * x[2]) / 4)


def test_geometric_median_scales_with_its_rows() -> None:
    x = rows(9, 20).double()
    one = byzflow.aggregate("geometric_median", x)
    for scale in (1e-6, 1e-3, 1e3, 1e6):
        torch.testing.assert_close(byzflow.aggregate("geometric_median", scale * x) / scale, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("k", "cost"), [(4, 38.5411), (50, 496.2901)])
def test_geometric_median_leaves_a_row_that_is_not_the_minimum(k: int, cost: float) -> None:
    x = torch.cat([torch.zeros(1, k), 10 * torch.eye(k)]).double()
    z = byzflow.aggregate("geometric_median", x)
    assert (x - z).norm(dim=1).sum() < cost


def test_duplicates_leave_self_out_by_index() -> None:
    x = torch.zeros(5, 3)
    x[0] = 1
    assert torch.equal(byzflow.aggregate("krum", x, f=1), torch.zeros(3))


def test_inference_mode_and_no_grad() -> None:
    x = rows()
    with torch.inference_mode():
        result = byzflow.parse("trimmed_mean", f=2).explain(x)
    assert result.weights is not None


def test_distances_to_the_result_where_the_gram_tells_them_and_by_one_more_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 300, generator=generator) + 1000
    rows[3, 7] = torch.nan
    left = [i for i in range(9) if i != 3]
    for spec, told in {"multi_krum": True, "nnm | krum": True, "median": False, "flame": False, "cge": False}.items():
        found = byzflow.parse(spec, f=2).explain(rows)
        expected = torch.linalg.vector_norm(rows[left].double() - found.value.double(), dim=1)
        measured = distances(Rows.of(rows[left]), Rows.of([found.value]))
        assert torch.allclose(measured, expected, rtol=1e-12), spec
        assert (found.distances is not None) == told, spec
        if found.distances is not None:
            assert found.distances[3] == torch.inf
            assert torch.allclose(found.distances[left], expected, atol=1e-3), spec
    huge = torch.full((3, 4), 3e38)
    assert distances(Rows.of(huge), Rows.of([-huge[0]])).isfinite().all()


def test_the_nearest_are_the_first_of_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 40):
        values = torch.randint(0, 4, (n, n), generator=generator).double()  # many ties
        values[0, n // 2] = torch.nan
        values[n - 1, 0] = torch.inf
        for k in {1, n // 2 + 1, n}:
            expected = torch.zeros(n, n, dtype=torch.bool).scatter_(1, smallest(values, k), True)
            taken = nearest(values, k)
            assert torch.equal(taken.sum(1), torch.full((n,), k))
            assert torch.equal(taken[1 : n - 1], expected[1 : n - 1])  # NaN and Inf count alike
