"""What the definitions and the flags promise of every installed operator, on random rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import byzflow
from byzflow.errors import NotEnoughSenders, SpecError
from byzflow.operators import Attack, Operator, PreAggregator
from byzflow.parameters import Parameter, arms, parameters
from byzflow.registry import Entry
from byzflow.spec import make
from byzflow.testing import sample_extras
from tests.operators.test_contract import INNER, instance

ENTRIES = byzflow.installed().of_kind()
AGGREGATORS = byzflow.installed().of_kind("aggregator")
TRUSTED = 3  # the row that `instance` lets rules trust

# Scaling all rows scales the result, together with these parameters, which are lengths in the unit of the rows.
LENGTHS = {
    "clipping": ("c",),
    "centered_clipping": ("tau",),
    "huber": ("threshold",),
    "auto_gm": ("lam",),
    "correntropy": ("sigma",),
    "clipped_clustering": ("max_tau",),
    "clipped_gossip": ("tau",),
    "gaussian": ("mean", "sigma"),
    "fang_krum": ("stop",),
    "rop": ("z",),
    "zeno_pp": ("epsilon",),
}
# The result of these does not depend on the scale of the rows at all.
SCALE_FREE = {"normalize", "sign_majority", "inf", "nan", "zero", "huge"}


def each(entries: Iterable[Entry]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entry", list(entries), ids=lambda e: e.operator.name)


every, aggregators = each(ENTRIES), each(AGGREGATORS)


def few(examples: int) -> Callable[[Any], Any]:
    """Bounded and the same in every run."""
    return settings(deadline=None, max_examples=examples, derandomize=True, database=None)


faults = st.integers(0, 3)
seeds = st.integers(0, 2**32)
sizes = st.integers(2, 40)


@cache
def made(entry: Entry, f: int) -> Operator:
    operator = instance(entry, f)
    return replace(operator, z=0.5) if operator.name == "rop" else operator  # else z is a word


def longer(operator: Operator, scale: float) -> Operator:
    """The operator for rows that are `scale` times as long."""
    changed: dict[str, Any] = {name: scale * getattr(operator, name) for name in LENGTHS.get(operator.name, ())}
    for parameter in parameters(type(operator)):
        value = getattr(operator, parameter.name)
        if isinstance(value, Operator):
            changed[parameter.name] = longer(value, scale)
    return replace(operator, **changed)


def draw(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(n, d): rows of different length about a centre that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    lengths = 0.2 + torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return (torch.randn(d, generator=generator, dtype=torch.float64) + noise * lengths).to(dtype)


def looks(operator: Operator) -> bool:
    """If the operator looks at the rows at all: some attacks know only rows of their own."""
    return getattr(operator, "knowledge", "omniscient") == "omniscient"


def defends(operator: Operator, n: int) -> bool:
    """If the operator does not say itself that so many Byzantine rows may move it anywhere."""
    f = operator.declared
    breakdown = operator.bounds(n, f, None).breakdown
    return f > 0 and (breakdown is None or f <= breakdown * n)


def odd(operator: Operator, more: int) -> int:
    """An odd number of rows, above the bound by 2 at least: of an even number two middle rows may tie."""
    n = operator.min_senders + 2 + more
    return n + (n + 1) % 2


def apply(operator: Operator, rows: Tensor, extras: dict[str, Any] | None = None, **options: Any) -> Tensor:
    """The result; neither the rows nor the extras may have been written to, not even for a moment."""
    extras = sample_extras(operator, rows) if extras is None else extras
    given = [rows, *(value for value in extras.values() if isinstance(value, Tensor))]
    before = [(each.clone(), each._version) for each in given]
    value = operator(rows, **extras, **options)
    for each, (copy, version) in zip(given, before, strict=True):
        assert each._version == version, f"{operator} wrote to its input"
        torch.testing.assert_close(each, copy, rtol=0, atol=0, equal_nan=True)
    return value


def near(got: Tensor, wanted: Tensor, scale: float, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(got / scale, wanted / scale, rtol=1e-9, atol=tolerance, equal_nan=True)


@each(e for e in ENTRIES if instance(e, 1).permutation_equivariant)
@few(6)
@given(f=faults, more=st.integers(0, 4), d=sizes, seed=seeds)
def test_the_order_of_the_rows_does_not_matter(entry: Entry, f: int, more: int, d: int, seed: int) -> None:
    if entry.operator.name == "bulyan":
        f = 3 * (f // 2)  # with f of 1 or 2 the last scores count one neighbour, and nearest neighbours tie
    operator = made(entry, f)
    n = odd(operator, more)
    rows = draw(n, d, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))
    extras = sample_extras(operator, rows)
    value, other = apply(operator, rows, extras), apply(operator, rows[order], extras)
    if entry.operator.name == "mda":  # several sets of rows may share the least diameter
        assert diameter(operator, rows) == pytest.approx(diameter(operator, rows[order]), rel=1e-12)
        return
    if isinstance(operator, PreAggregator) and operator.out_rows(n) == n:
        value = value[order]
    near(other, value, 1.0)


def diameter(operator: Operator, rows: Tensor) -> float:
    weights = operator.explain(rows).weights
    assert weights is not None
    return float(torch.pdist(rows[weights > 0]).max()) if int((weights > 0).sum()) > 1 else 0.0


@each(e for e in ENTRIES if instance(e, 1).shift_invariant)
@few(6)
@given(f=faults, more=st.integers(0, 4), d=sizes, seed=seeds, size=st.floats(-3, 5))
def test_a_shift_of_the_rows_shifts_the_result(entry: Entry, f: int, more: int, d: int, seed: int, size: float) -> None:
    operator = made(entry, f)
    rows = draw(odd(operator, more), d, seed)
    shift = 10**size * draw(1, d, seed + 1)[0]
    extras = sample_extras(operator, rows)
    moved = {name: value + shift if isinstance(value, Tensor) else value for name, value in extras.items()}
    near(apply(operator, rows + shift, moved) - shift, apply(operator, rows, extras), 1.0)


@every
@few(6)
@given(f=faults, more=st.integers(0, 4), d=sizes, seed=seeds, size=st.floats(-6, 4))
def test_scaled_rows_give_a_scaled_result(entry: Entry, f: int, more: int, d: int, seed: int, size: float) -> None:
    operator, scale = made(entry, f), 10**size
    rows = draw(odd(operator, more), d, seed)
    extras = sample_extras(operator, rows)
    value = apply(operator, rows, extras)
    more_extras = {k: scale * v if isinstance(v, Tensor) else v for k, v in extras.items()}
    scaled = apply(longer(operator, scale), scale * rows, more_extras)
    near(scaled, value if operator.name in SCALE_FREE else scale * value, 1 if operator.name in SCALE_FREE else scale)


def test_the_table_of_lengths_is_of_use() -> None:
    """An exception must be one: without its lengths the operator would not scale."""
    rows = draw(9, 20, 0)
    for entry in ENTRIES:
        name = entry.operator.name
        if name in {"normalize", "sign_majority", *LENGTHS} - {"clipped_clustering", "fang_krum"}:
            operator = made(entry, 1)
            value = 1e3 * apply(operator, 1e-3 * rows, sample_extras(operator, 1e-3 * rows))
            assert not torch.allclose(value, apply(operator, rows), equal_nan=False), name


@each(e for e in AGGREGATORS if instance(e, 1).shift_invariant)  # others may clip them
@few(7)
@given(f=faults, d=sizes, seed=seeds, size=st.floats(-6, 6), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_equal_rows_give_that_row(entry: Entry, f: int, d: int, seed: int, size: float, dtype: torch.dtype) -> None:
    operator = made(entry, f)
    row = 10**size * draw(1, d, seed)
    rows = row.expand(operator.min_senders + 2, d).to(dtype)
    scale = float(rows.abs().max())
    near(apply(operator, rows), rows[0], scale, 1e-12 if dtype == torch.float64 else 1e-6)


@aggregators
@few(8)
@given(f=faults, d=st.integers(1, 20), seed=seeds, kinds=st.integers(1, 3))
def test_the_result_lies_between_the_rows_even_where_many_are_equal(
    entry: Entry, f: int, d: int, seed: int, kinds: int
) -> None:
    operator = made(entry, f)
    different = draw(kinds, d, seed)
    rows = different[torch.randint(kinds, (odd(operator, 0),), generator=torch.Generator().manual_seed(seed))]
    value = apply(operator, rows)
    assert torch.isfinite(value).all()
    if operator.shift_invariant:
        assert (value >= rows.min(0).values - 1e-9).all()
        assert (value <= rows.max(0).values + 1e-9).all()


def poisoned(n: int, f: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows about a centre, and f of them to replace: anywhere, except the one that may be trusted."""
    generator = torch.Generator().manual_seed(seed + 7)
    others = torch.tensor([i for i in range(n) if i != TRUSTED])
    return draw(n, d, seed), others[torch.randperm(len(others), generator=generator)[:f]]


@each(e for e in AGGREGATORS if defends(instance(e, 1), 40))  # the others say that they may
@few(6)
@given(f=st.integers(1, 3), more=st.integers(2, 8), d=sizes, seed=seeds, far=st.floats(1, 12))
def test_colluders_who_send_one_row_move_the_result_only_so_far(
    entry: Entry, f: int, more: int, d: int, seed: int, far: float
) -> None:
    operator = made(entry, f)
    n = max(operator.min_senders + more, 10 * f if operator.name == "centered_clipping" else 0)
    assume(defends(operator, n))
    rows, bad = poisoned(n, f, d, seed)
    extras = sample_extras(operator, rows)
    honest = rows[[i for i in range(n) if i not in bad]]
    rows[bad] = 10**far * draw(1, d, seed + 1)[0]
    radius = float((honest - honest.mean(0)).norm(dim=1).max() + honest.mean(0).norm())
    assert float((apply(operator, rows, extras) - honest.mean(0)).norm()) < 8 * radius


@aggregators
@few(6)
@given(
    more=st.integers(2, 6),
    d=sizes,
    seed=seeds,
    huge=st.sampled_from([1e18, 1e20, 1e30, -1e30, 3e38]),
    everywhere=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_one_huge_row(
    entry: Entry, more: int, d: int, seed: int, huge: float, everywhere: bool, dtype: torch.dtype
) -> None:
    operator = made(entry, 1)
    n = max(operator.min_senders + more, 10 if operator.name == "centered_clipping" else 0)
    clean, bad = poisoned(n, 1, d, seed)
    extras = sample_extras(operator, clean)
    rows = clean.to(dtype)
    rows[bad[0], slice(None) if everywhere else int(seed % d)] = huge
    value = apply(operator, rows, extras).double()
    assert torch.isfinite(value).all()
    if defends(operator, n):
        honest = clean[[i for i in range(n) if i != bad[0]]]
        assert float((value - honest.mean(0)).norm()) < 8 * float(honest.norm(dim=1).max())


@each(e for e in ENTRIES if looks(instance(e, 1)))
@few(6)
@given(
    f=faults,
    more=st.integers(0, 4),
    d=sizes,
    seed=seeds,
    count=st.integers(1, 3),
    value=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]),
)
def test_rows_that_are_not_finite_are_as_if_they_had_not_been_sent(
    entry: Entry, f: int, more: int, d: int, seed: int, count: int, value: float, dtype: torch.dtype
) -> None:
    operator = made(entry, f)
    n = operator.min_senders + 2 * count + more
    rows, bad = poisoned(n, count, d, seed)
    extras = sample_extras(operator, rows)
    rows = rows.to(dtype)
    rejected = tuple(sorted(bad.tolist()))
    left = rows[[i for i in range(n) if i not in rejected]]
    for k, row in enumerate(rejected):  # a whole row, or one coordinate of it
        rows[row, slice(None) if k else seed % d] = value
    result = operator.explain(rows, **extras)
    assert result.rejected == rejected
    assert result.bound_exceeded == (operator.made_for is not None and count > operator.made_for)
    alone = operator.without(rejected, n)
    kept = hasattr(operator, "absent")  # in gossip a rejected row counts as a copy of the own one
    assert alone.declared == (operator.declared if kept else max(0, operator.declared - count))
    assert not isinstance(operator, Attack) or alone == operator
    torch.testing.assert_close(result.value, apply(alone, left, extras), rtol=1e-6, atol=1e-6, equal_nan=True)


@every
@few(8)
@given(f=st.integers(0, 6), d=st.integers(1, 5), seed=seeds)
def test_it_works_at_its_bound_and_not_one_below(entry: Entry, f: int, d: int, seed: int) -> None:
    operator = made(entry, f)
    n = operator.min_senders
    assert apply(operator, draw(n, d, seed)).shape[-1] == d
    if n > 1:
        with pytest.raises(NotEnoughSenders, match=rf"needs at least {n} senders, got {n - 1}"):
            apply(operator, draw(n - 1, d, seed))


@aggregators
def test_its_bound_grows_with_f(entry: Entry) -> None:
    bounds = [made(entry, f).min_senders for f in range(20)]
    assert bounds == sorted(bounds)
    if made(entry, 1).made_for is not None and entry.operator.name not in ("fltrust", "zeno_pp"):
        assert all(n > 2 * f for f, n in enumerate(bounds)), "half of the rows may be Byzantine"


@every
@few(7)
@given(f=faults, more=st.integers(0, 4), seed=seeds)
def test_one_coordinate(entry: Entry, f: int, more: int, seed: int) -> None:
    """As the same rows with a coordinate of zeros beside it, for rules that measure; for others column by column."""
    operator = made(entry, f)
    rows = draw(operator.min_senders + more, 1, seed)
    value = apply(operator, rows)
    assert value.shape[-1] == 1
    if operator.kind == "rows" or operator.name in SCALE_FREE | {"gaussian"}:
        return
    wide = torch.cat([rows, torch.zeros_like(rows)], 1)
    near(apply(operator, wide, sample_extras(operator, wide))[..., :1], value, 1.0)


@every
@few(6)
@given(
    f=faults,
    d=st.sampled_from([5, 1000]),
    seed=seeds,
    size=st.sampled_from([1.0, 300.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_a_narrow_dtype_costs_only_the_rounding_of_the_result(
    entry: Entry, f: int, d: int, seed: int, size: float, dtype: torch.dtype
) -> None:
    operator = made(entry, f)
    generator = torch.Generator().manual_seed(seed)
    clean = size * (1 + torch.randn(odd(operator, 0), d, generator=generator, dtype=torch.float64) / 8)
    rows = clean.to(dtype)
    extras = sample_extras(operator, rows)
    value = apply(operator, rows, extras)
    assert value.dtype == dtype
    if operator.kind == "rows" and isinstance(operator, Attack):
        return  # noise is drawn in the precision of the rows
    wide = apply(operator, rows.double(), extras)
    biggest = torch.finfo(dtype).max
    wanted = wide.to(dtype).double()
    error = (value.double() - wanted)[wanted.abs() < biggest].abs()
    allowed = 2 * torch.finfo(dtype).eps * (wide.abs().nan_to_num(0, 0, 0).max() if wide.numel() else 0.0)
    assert error.numel() == 0 or float(error.max()) <= float(allowed)


@every
@few(10)
@given(data=st.data(), f=faults)
def test_any_valid_parameters_survive_their_spec(entry: Entry, data: st.DataObject, f: int) -> None:
    values = {p.name: data.draw(valid(p), p.name) for p in parameters(entry.operator) if data.draw(chosen(p))}
    try:
        operator = make(entry.operator, values, f)
    except SpecError:
        assume(False)
    again = byzflow.parse(str(operator))
    assert again == operator
    assert str(again) == str(operator)
    assert hash(again) == hash(operator)


def chosen(parameter: Parameter) -> st.SearchStrategy[bool]:
    required = parameter.default is MISSING and parameter.name != "f"
    return st.just(True) if required else st.booleans()


def valid(parameter: Parameter) -> st.SearchStrategy[Any]:
    """Any value that the parameter's annotation and range allow."""
    return st.one_of([of_arm(arm, parameter) for arm in arms(parameter.type)])


def of_arm(arm: Any, parameter: Parameter) -> st.SearchStrategy[Any]:
    low = max((v for k, v in parameter.bounds.items() if k in ("ge", "gt")), default=-1e30)
    high = min((v for k, v in parameter.bounds.items() if k in ("le", "lt")), default=1e30)
    if get_origin(arm) is Literal:
        return st.sampled_from(get_args(arm))
    if arm is bool:
        return st.booleans()
    if arm is int:
        return st.integers(int(low) + ("gt" in parameter.bounds), int(min(high, 10_000)) - ("lt" in parameter.bounds))
    if arm is float:
        strict = {"exclude_min": "gt" in parameter.bounds, "exclude_max": "lt" in parameter.bounds}
        return st.floats(low, high, allow_nan=False, **strict)
    if arm is str:
        return st.text("abc|(),='-_ ", min_size=1, max_size=8)
    if arm is type(None):
        return st.none()
    assert isinstance(arm, type)
    assert issubclass(arm, Operator), f"no values are known for {arm}"
    specs = ["median", "nnm(f=2) | trimmed_mean(f=1)", "krum(f=1, neighbors=n-f-1)", "layerwise(rule=medoid)"]
    if isinstance(byzflow.parse(INNER[parameter.name], f=1), Attack):
        specs = ["ipm(f=2)", "alie(f=2, z=0.5)", "gaussian(f=2, seed=4)"]
    return st.sampled_from([byzflow.parse(spec) for spec in specs])


@every
@few(2)
@given(f=faults, seed=seeds)
def test_two_threads_share_one_object(entry: Entry, f: int, seed: int) -> None:
    operator = made(entry, f)
    several = [draw(operator.min_senders + k % 4, 3 + k, seed + k) for k in range(5)]
    hostile = torch.full_like(several[0], torch.nan)
    alone = [apply(operator, rows) for rows in several]

    def both(rows: Tensor) -> Tensor:
        if looks(operator):
            with pytest.raises(byzflow.ByzflowError):
                operator(hostile, **sample_extras(operator, several[0]))
        return apply(operator, rows)

    with ThreadPoolExecutor(2) as pool:
        for got, wanted in zip(pool.map(both, several), alone, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


CHAINS = ["nnm | median", "arc | nnm | mva", "bucketing | geometric_median", "clipping(c=1) | nnm | trimmed_mean"]


@pytest.mark.parametrize("spec", CHAINS)
@few(8)
@given(f=faults, more=st.integers(0, 4), d=sizes, seed=seeds)
def test_a_chain_is_its_stages_one_after_the_other(spec: str, f: int, more: int, d: int, seed: int) -> None:
    chain = byzflow.parse(spec, f=f)
    rows = draw(chain.min_senders + more, d, seed)
    one_by_one = rows
    for part in spec.split("|"):
        one_by_one = byzflow.aggregate(part, one_by_one, f=f)
    near(apply(chain, rows), one_by_one, 1.0)


@pytest.mark.parametrize("spec", ["median", "trimmed_mean", "meamed", "phocas", "winsorized_mean"])
@few(8)
@given(f=faults, more=st.integers(0, 4), seed=seeds, cuts=st.lists(st.integers(0, 60), max_size=4))
def test_a_column_rule_is_the_same_on_any_cut_of_the_columns(
    spec: str, f: int, more: int, seed: int, cuts: list[int]
) -> None:
    operator = byzflow.parse(spec, f=f)
    rows = draw(operator.min_senders + more, 60, seed)
    edges = sorted({0, 60, *cuts})
    parts = [apply(operator, rows[:, a:b]) for a, b in pairwise(edges)]
    torch.testing.assert_close(torch.cat(parts), apply(operator, rows), rtol=1e-14, atol=1e-15)
