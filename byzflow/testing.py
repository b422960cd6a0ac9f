"""The contract that every operator passes, a plugin's as much as byzflow's own.

    from byzflow.testing import check_operator

    def test_contract():
        check_operator(MyRule(f=2))

`check_backend("mine://host")` does the same for a backend of workers. Each check is a function of the operator; the
first that fails raises AssertionError and says what was promised and what was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byzflow.actors.conformance import check_backend as check_backend
from byzflow.errors import NotEnoughSenders, RowsError
from byzflow.operators import Attack, Operator, PreAggregator
from byzflow.registry import installed
from byzflow.spec import parse

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
D = 37


def check_operator(operator: Operator | str, f: int | None = None) -> None:
    """Raise AssertionError at the first promise that the operator breaks; `f` as in `byzflow.parse`."""
    operator = parse(operator, f=f)
    for check in CHECKS:
        check(operator)


def sample_rows(operator: Operator, d: int = D, dtype: torch.dtype = torch.float64, more: int = 4) -> Tensor:
    """(n, d) rows around 1, a little more of them than the operator needs."""
    generator = torch.Generator().manual_seed(7)
    n = operator.min_senders + more
    return (1 + torch.randn(n, d, generator=generator, dtype=torch.float64) / 4).to(dtype)


def sample_extras(operator: Operator, rows: Tensor) -> dict[str, Any]:
    """A plausible value for each extra vector that the operator takes, near the rows, and for what an attack needs."""
    extras: dict[str, Any] = {}
    for k, name in enumerate(operator.vectors, start=1):
        extras[name] = rows.double().mean(0) * (1 + k / 8)
    if "against" in operator.accepts:
        extras["against"] = "mean"
    if _looks_elsewhere(operator):
        extras["own"] = rows[:1].expand(operator.out_rows(1), -1) * 2
    return extras


def call(operator: Operator, rows: Any, like: Tensor, **options: Any) -> Any:
    """The result, with sample extras that fit `like`."""
    return operator(rows, **sample_extras(operator, like), **options)


def _has_a_name_and_a_spec(operator: Operator) -> None:
    assert operator.__doc__, f"{operator}: the class needs a docstring; its first sentence is printed in tables"
    stages = getattr(operator, "stages", (operator,))
    again = parse(str(operator), registry=installed().including(type(stage) for stage in stages))
    assert again == operator, f"the spec {operator} reads back as {again}"


def _keeps_shape_dtype_and_input(operator: Operator) -> None:
    for dtype in DTYPES:
        rows = sample_rows(operator, dtype=dtype)
        before = rows.clone()
        value = call(operator, rows, rows)
        assert torch.equal(rows, before), f"{operator} modified its input"
        shape = (operator.out_rows(len(rows)), D) if _gives_rows(operator) else (D,)
        assert value.shape == shape, f"{operator} gave shape {tuple(value.shape)} for {tuple(rows.shape)}, not {shape}"
        assert value.dtype == dtype, f"{operator} gave {value.dtype} for {dtype} rows"
        finite = isinstance(operator, Attack) or torch.isfinite(value).all()
        assert finite, f"{operator} gave NaN or Inf for {dtype} rows around 1"
        assert not value.requires_grad, f"{operator} gave a tensor that requires grad"
        assert value.numel() == 0 or value.data_ptr() != rows.data_ptr(), f"{operator} returned its input's memory"


def _serves_every_kind_of_row(operator: Operator) -> None:
    rows = sample_rows(operator)
    expected = call(operator, rows, rows)

    def flat(value: Any) -> Tensor:
        if isinstance(value, dict):
            return torch.cat([torch.as_tensor(value[k]).flatten() for k in ("a", "b")])
        if isinstance(value, list):
            return torch.stack([flat(one) for one in value]) if value else torch.empty(0, D)
        return torch.as_tensor(value)

    def named(row: Any) -> dict[str, Any]:
        return {"a": row[:12].reshape(3, 4), "b": row[12:]}

    def renamed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return named(value) if value.ndim == 1 else [named(row) for row in value]

    extras = sample_extras(operator, rows)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "a list of tensors": (list(rows), extras),
        "a numpy array": (rows.numpy(), extras),
        "a list of arrays": (list(rows.numpy()), extras),
        "a list of mappings": ([named(row) for row in rows], {k: renamed(v) for k, v in extras.items()}),
    }
    for kind, (given, given_extras) in kinds.items():
        got = flat(operator(given, **given_extras))
        _near(got, expected, f"{operator} on {kind} differs from the same rows as one tensor")


def _rejects_rows_that_are_not_finite(operator: Operator) -> None:
    if _looks_elsewhere(operator):
        return
    rows = sample_rows(operator)
    for where in (0, len(rows) - 1):
        for value in (torch.nan, torch.inf, -torch.inf):
            bad = rows.clone()
            bad[where, 5] = value
            result = operator.explain(bad, **sample_extras(operator, rows))
            assert result.rejected == (where,), f"{operator}: row {where} holds {value}, rejected was {result.rejected}"
            if operator.permutation_equivariant:
                left = torch.cat([rows[:where], rows[where + 1 :]])
                expected = call(operator.without((where,), len(rows)), left, rows)
                _near(result.value, expected, f"{operator} with row {where} of {value} differs from without it")
    try:
        call(operator, torch.full_like(rows, torch.nan), rows)
    except RowsError:
        return
    raise AssertionError(f"{operator} gave a result for rows that all hold NaN")


def _survives_huge_finite_rows(operator: Operator) -> None:
    rows = sample_rows(operator, dtype=torch.float32)
    for where in (0, len(rows) - 1):
        for huge in (1e30, -1e30, 1e18):
            bad = rows.clone()
            bad[where] = huge
            value = call(operator, bad, rows)
            wanted = torch.isfinite(call(operator, rows, rows))
            assert torch.isfinite(value[wanted]).all(), f"{operator} is not finite with a row of {huge} at {where}"


def _checks_its_bound(operator: Operator) -> None:
    n = operator.min_senders
    rows = sample_rows(operator, more=0)
    call(operator, rows, rows)
    if n > 1:
        try:
            call(operator, rows[1:], rows)
        except NotEnoughSenders as error:
            assert str(n) in str(error), f"{operator}: the message does not name the bound {n}: {error}"
        else:
            raise AssertionError(f"{operator} accepted {n - 1} rows, its min_senders is {n}")


def _takes_one_coordinate_and_equal_rows(operator: Operator) -> None:
    rows = sample_rows(operator, d=1)
    assert torch.isfinite(call(operator, rows, rows)).all() or not _gives_finite(operator), f"{operator} fails at d = 1"
    equal = rows[:1].expand(len(rows), 1)
    assert torch.isfinite(call(operator, equal, equal)).all() or not _gives_finite(operator), (
        f"{operator} fails on equal rows"
    )


def _keeps_its_flags(operator: Operator) -> None:
    rows = sample_rows(operator)
    value = call(operator, rows, rows)
    if operator.permutation_equivariant:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))
        got = operator(rows[order], **sample_extras(operator, rows))
        expected = value[order] if isinstance(operator, PreAggregator) and len(value) == len(rows) else value
        _near(got, expected, f"{operator} is flagged permutation_equivariant, but the order of the rows matters")
    if operator.shift_invariant and not operator.vectors:
        _near(operator(rows + 3) - 3, value, f"{operator} is flagged shift_invariant, but a shift changes it")


def _is_the_same_in_two_threads(operator: Operator) -> None:
    several = [sample_rows(operator, more=k) for k in (2, 3, 4, 5)] * 3
    alone = [call(operator, rows, rows) for rows in several]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda rows: call(operator, rows, rows), several))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b) or bool(torch.isnan(a).any()), f"{operator} gives other results in several threads"


CHECKS: tuple[Callable[[Operator], None], ...] = (
    _has_a_name_and_a_spec,
    _keeps_shape_dtype_and_input,
    _serves_every_kind_of_row,
    _checks_its_bound,
    _takes_one_coordinate_and_equal_rows,
    _rejects_rows_that_are_not_finite,
    _survives_huge_finite_rows,
    _keeps_its_flags,
    _is_the_same_in_two_threads,
)


def _gives_rows(operator: Operator) -> bool:
    last = getattr(operator, "stages", (operator,))[-1]
    return isinstance(last, PreAggregator | Attack)


def _looks_elsewhere(operator: Operator) -> bool:
    """Whether it is an attack made from the attackers' own rows, whatever the honest ones hold."""
    return isinstance(operator, Attack) and operator.knowledge != "omniscient" and operator.f > 0


def _gives_finite(operator: Operator) -> bool:
    rows = sample_rows(operator)
    return bool(torch.isfinite(call(operator, rows, rows)).all())


def _near(got: Any, expected: Any, message: str) -> None:
    a, b = np.asarray(torch.as_tensor(got).double()), np.asarray(torch.as_tensor(expected).double())
    assert a.shape == b.shape, f"{message}: shape {a.shape} against {b.shape}"
    assert np.allclose(a, b, rtol=1e-7, atol=1e-7, equal_nan=True), f"{message}, by up to {np.nanmax(abs(a - b)):.3g}"
