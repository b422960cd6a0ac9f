"""Rows of every kind, and the message for every kind of wrong rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import byzflow
from byzflow.errors import RowsError
from byzflow.rows import Rows

X = torch.arange(12.0).view(4, 3)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no rows"),
        (torch.empty(0, 3), "no rows"),
        (torch.ones(3), "must be (n, d)"),
        ({"a": torch.ones(3)}, "got dict"),
        ("abc", "got str"),
        (3, "got int"),
        ([torch.ones(3), torch.ones(4)], "row 1 has shape (4,), row 0 has (3,)"),
        ([torch.ones(3), torch.ones(3), torch.ones(3).double()], "row 2 is torch.float64, row 0 is torch.float32"),
        ([torch.ones(3), torch.ones(3).int()], "row 1 is torch.int32: only floating-point"),
        (torch.ones(2, 3, dtype=torch.int64), "row 0 is torch.int64"),
        ([np.ones(3), np.ones(3, dtype=object)], "row 1 is object"),
        (torch.eye(3).to_sparse(), "row 0 is torch.sparse_coo: only dense rows"),
        ([np.ones(3), None], "row 1 is NoneType"),
        ([{"a": torch.ones(2)}, {"b": torch.ones(2)}], "row 1 has other keys than row 0: missing ['a'], extra ['b']"),
        ([{"a": torch.ones(2)}, torch.ones(2)], "row 1 is not of the same kind"),
        ([{"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.long)}], "row 1, key 'a' is torch.int64"),
        ([{}, {}], "row 0 is an empty mapping"),
        ([torch.ones(2), torch.ones(2, device="meta")], "row 1 is on meta, row 0 is on cpu"),
    ],
)
def test_wrong_rows_name_the_row(rows: Any, words: str) -> None:
    with pytest.raises(RowsError) as caught:
        byzflow.aggregate("mean", rows)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mappings_match_by_key_and_keep_order_shapes_and_dtypes() -> None:
    a = {"w": torch.ones(2, 2), "b": torch.ones(3, dtype=torch.float16)}
    b = {"b": torch.zeros(3, dtype=torch.float16), "w": torch.zeros(2, 2)}
    value = byzflow.aggregate("mean", [a, b])
    assert list(value) == ["w", "b"]
    assert torch.equal(value["w"], torch.full((2, 2), 0.5))
    assert torch.equal(value["b"], torch.full((3,), 0.5, dtype=torch.float16))


def test_read_only_and_strided_arrays_are_read_without_a_copy() -> None:
    frozen = np.arange(6.0)
    frozen.setflags(write=False)
    assert Rows.of([frozen]).sources[0][0].data_ptr() == frozen.__array_interface__["data"][0]
    rows = np.arange(24.0).reshape(4, 6)[:, ::-2]
    assert np.array_equal(byzflow.aggregate("mean", rows), rows.mean(0))
    swapped = [row.astype(">f8") for row in rows]
    assert np.array_equal(byzflow.aggregate("mean", swapped), rows.mean(0))


def test_rows_that_require_grad_give_a_detached_result() -> None:
    rows = X.clone().requires_grad_()
    value = byzflow.aggregate("median", rows)
    assert not value.requires_grad
    assert rows.grad is None


def test_no_coordinates_and_one_row() -> None:
    assert byzflow.aggregate("krum", torch.empty(5, 0), f=1).shape == (0,)
    assert byzflow.aggregate("median", torch.empty(5, 0)).shape == (0,)
    assert torch.equal(byzflow.aggregate("geometric_median", X[:1]), X[0])
    assert byzflow.attack("ipm", X, f=0).shape == (0, 3)


def test_more_dimensions() -> None:
    rows = torch.randn(5, 2, 3, 4)
    assert torch.equal(byzflow.aggregate("median", rows), rows.median(0).values)
    assert byzflow.aggregate("nnm", rows, f=1).shape == rows.shape


def test_tiles_cover_every_coordinate_once() -> None:
    rows = Rows.of([{"a": torch.arange(7.0), "b": torch.empty(0), "c": torch.arange(7.0, 10.0)}])
    seen = torch.cat([rows.tile(span)[0] for span in rows.layout.spans(3)])
    assert torch.equal(seen, torch.arange(10.0))


def test_a_vector_that_does_not_fit_is_named() -> None:
    with pytest.raises(RowsError, match=r"center does not fit the rows: row 0 has shape \(2,\), a row has \(3,\)"):
        Rows.of(X).vector("center", torch.ones(2))
