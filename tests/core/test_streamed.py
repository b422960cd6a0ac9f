"""Rows that are larger than memory: memory-mapped files and tiles read on demand give the same results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import byzflow
from byzflow.errors import RowsError

SPECS = ["median", "meamed", "krum", "geometric_median", "nnm | trimmed_mean", "bulyan", "dnc", "aksel"]
X = torch.randn(11, 5000, generator=torch.Generator().manual_seed(0))


def read(start: int, stop: int) -> torch.Tensor:
    return X[:, start:stop]


@pytest.mark.parametrize("spec", SPECS)
def test_tiles_read_on_demand(spec: str) -> None:
    expected = byzflow.parse(spec, f=2).explain(X)
    got = byzflow.parse(spec, f=2).explain(byzflow.Streamed(read, 11, 5000))
    torch.testing.assert_close(got.value, expected.value)
    torch.testing.assert_close(got.weights, expected.weights)


@pytest.mark.parametrize("spec", SPECS)
def test_memory_mapped_arrays(spec: str, tmp_path: Path) -> None:
    rows = []
    for i, row in enumerate(X.numpy()):
        row.tofile(tmp_path / str(i))
        rows.append(np.memmap(tmp_path / str(i), dtype=np.float32, mode="r"))
    got = byzflow.aggregate(spec, rows, f=2)
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, byzflow.aggregate(spec, X, f=2), rtol=1e-6, atol=1e-7)


def test_a_streamed_row_that_is_not_finite_is_left_out() -> None:
    bad = X.clone()
    bad[4, 4999] = torch.nan
    result = byzflow.parse("nnm | median", f=2).explain(byzflow.Streamed(lambda a, b: bad[:, a:b], 11, 5000))
    assert result.rejected == (4,)
    left = torch.cat([X[:4], X[5:]])
    torch.testing.assert_close(result.value, byzflow.aggregate("nnm | median", left, f=1))


def test_only_tiles_are_held() -> None:
    widest = []

    def counted(start: int, stop: int) -> torch.Tensor:
        widest.append(stop - start)
        return torch.ones(8, stop - start)

    byzflow.aggregate("krum", byzflow.Streamed(counted, 8, 3_000_000), f=2)
    assert max(widest) <= 40_000


def test_what_read_gives_is_checked() -> None:
    with pytest.raises(RowsError, match=r"gave torch.float32 of shape \(3, 7\)"):
        byzflow.aggregate("mean", byzflow.Streamed(lambda a, b: torch.ones(3, 7), 3, 100))
    with pytest.raises(RowsError, match="n >= 1"):
        byzflow.Streamed(read, 0, 5)


def test_sampled_coordinates_are_read_a_tile_at_a_time() -> None:
    calls = []

    def counted(start: int, stop: int) -> torch.Tensor:
        calls.append((start, stop))
        return torch.arange(start, stop, dtype=torch.float32).expand(8, -1)

    wanted = torch.randperm(100_000, generator=torch.Generator().manual_seed(0))[:3000]
    got = byzflow.Streamed(counted, 8, 100_000).pick(wanted)
    assert torch.equal(got, wanted.float().expand(8, -1))
    assert len(calls) <= 10
    assert calls == sorted(calls)


def test_a_streamed_median_is_a_point_of_the_gram_without_being_kept() -> None:
    widest = []

    def counted(start: int, stop: int) -> torch.Tensor:
        widest.append(stop - start)
        return X.repeat(1, 80)[:, start:stop]

    expected = byzflow.parse("aksel", f=2).explain(X)
    assert torch.equal(
        byzflow.parse("aksel", f=2).explain(byzflow.Streamed(counted, 11, 5000)).weights, expected.weights
    )
    byzflow.aggregate("foundation_fl", byzflow.Streamed(counted, 11, 400_000), f=2)
    assert max(widest) <= 40_000
