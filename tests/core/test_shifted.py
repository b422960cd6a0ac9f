"""Rows less an origin: every rule gives what it gives for the differences, and none of them is ever made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import byzflow
from byzflow.engine import kernels
from byzflow.engine.passes import combine_pass, gram_pass
from byzflow.errors import RowsError
from byzflow.layout import Span
from byzflow.rows import Mixed, Rows, Shifted

N, D, F = 11, 3000, 2
# Spans and columns, rules that measure from the origin and rules that do not, chains, and rules that are neither.
SPECS = [
    "mean",
    "median",
    "meamed",
    "winsorized_mean",
    "krum",
    "bulyan",
    "geometric_median",
    "cge",
    "caf",
    "centered_clipping(tau=0.3)",
    "huber(threshold=0.3)",
    "clipped_clustering",
    "foolsgold",
    "dnc",
    "aksel",
    "rlr(threshold=2)",
    "layerwise(rule=cge)",
    "clipping(c=0.3) | median",
    "arc | nnm | geometric_median",
    "nnm | trimmed_mean",
]


@pytest.fixture(params=["c", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both ways to run the passes."""
    if request.param == "c" and kernels.library() is None:
        pytest.skip("no compiled kernels here")
    monkeypatch.setenv(kernels.CHOICE, request.param)
    kernels.library.cache_clear()
    yield
    monkeypatch.undo()
    kernels.library.cache_clear()


def models(dtype: torch.dtype = torch.float32, step: float = 0.01) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Models of two leaves a small step from their origin, and it."""
    generator = torch.Generator().manual_seed(0)
    origin = torch.randn(D, generator=generator).to(dtype)
    away = step * torch.randn(N, D, generator=generator)
    away[-F:] += 3 * step
    leaves = [{"a": row[:1000].view(20, 50), "b": row[1000:]} for row in (*(origin + away).to(dtype), origin)]
    return leaves[:-1], leaves[-1]


def less(rows: list[dict[str, Any]], origin: dict[str, Any], dtype: torch.dtype) -> list[dict[str, Any]]:
    return [{name: leaf.to(dtype) - origin[name].to(dtype) for name, leaf in row.items()} for row in rows]


def flat(value: dict[str, Any]) -> torch.Tensor:
    return torch.cat([torch.as_tensor(leaf).flatten().double() for leaf in value.values()])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("step", [0.01, 1e-5])
def test_every_rule_gives_what_it_gives_for_the_differences(spec: str, step: float) -> None:
    rows, origin = models(step=step)
    expected = byzflow.parse(spec, f=F).explain(less(rows, origin, torch.float32))
    got = byzflow.parse(spec, f=F).explain(Shifted(rows, origin))
    assert float((flat(got.value) - flat(expected.value)).norm() / flat(expected.value).norm()) <= 1e-6
    if expected.weights is None:
        assert got.weights is None
    else:
        torch.testing.assert_close(got.weights, expected.weights, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spec", ["median", "krum", "cge", "nnm | trimmed_mean"])
def test_other_dtypes(spec: str, dtype: torch.dtype) -> None:
    rows, origin = models(dtype, step=0.1)
    expected = byzflow.aggregate(spec, less(rows, origin, torch.float64), f=F)
    got = byzflow.aggregate(spec, Shifted(rows, origin), f=F)
    assert {leaf.dtype for leaf in got.values()} == {dtype}
    torch.testing.assert_close(flat(got), flat(expected), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.usefixtures("path")
def test_a_centre_lies_where_the_differences_do() -> None:
    rows, origin = models()
    rule = byzflow.parse("centered_clipping(tau=0.3)")
    center = {name: 0.5 * leaf for name, leaf in less(rows, origin, torch.float32)[0].items()}
    expected = rule(less(rows, origin, torch.float32), center=center)
    torch.testing.assert_close(flat(rule(Shifted(rows, origin), center=center)), flat(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("path")
def test_a_row_that_is_not_finite_is_left_out() -> None:
    rows, origin = models()
    rows[3]["b"][7] = torch.nan
    rows[5]["a"][0, 0] = torch.inf
    left = [row for i, row in enumerate(rows) if i not in (3, 5)]
    for spec in ("median", "krum", "cge", "nnm | median"):
        got = byzflow.parse(spec, f=F).explain(Shifted(rows, origin))
        assert got.rejected == (3, 5)
        torch.testing.assert_close(flat(got.value), flat(byzflow.aggregate(spec, Shifted(left, origin), f=0)))


def test_combinations_and_products_are_read_where_the_rows_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, origin = models()
    shifted = Shifted(
        [{n: leaf.numpy() for n, leaf in row.items()} for row in rows], {n: leaf.numpy() for n, leaf in origin.items()}
    )
    monkeypatch.setattr(Shifted, "tile", lambda *_: pytest.fail("a difference was made"))
    weights = torch.rand(4, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    differences = torch.stack([flat(row) for row in less(rows, origin, torch.float64)])
    for answer, expected in zip(combine_pass(Mixed([shifted], weights)), weights @ differences, strict=True):
        torch.testing.assert_close(torch.cat(answer).double(), expected, rtol=1e-6, atol=1e-9)
    inner, bad = gram_pass(shifted, [])
    squares = inner.diagonal()[:-1] + inner[-1, -1] - 2 * inner[:-1, -1]
    torch.testing.assert_close(squares, differences.square().sum(1), rtol=1e-9, atol=0)
    assert not bad.any()


def test_parts_of_them() -> None:
    rows, origin = models()
    shifted, differences = Shifted(rows, origin), Rows.of(less(rows, origin, torch.float32))
    wanted, part = torch.tensor([0, 999, 1000, D - 1]), Span(1, 0, 1000)
    assert (shifted.n, shifted.take([4, 2]).n) == (N, 2)
    assert torch.equal(shifted.take([4, 2]).pick(wanted), differences.take([4, 2]).pick(wanted))
    assert torch.equal(shifted.cut(part).pick(wanted[:2]), differences.cut(part).pick(wanted[:2]))


def test_an_origin_of_another_shape_is_an_error() -> None:
    with pytest.raises(RowsError, match="origin does not fit the rows"):
        Shifted([np.ones(3), np.ones(3)], np.ones(4))
