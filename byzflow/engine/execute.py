"""Runs an operator on rows: the Gram pass where a stage needs it, n x n work, then one combining pass.

span chain          Gram pass, weights of every stage, combine
... | column rule   Gram pass, weights, mix a tile and rank it
column rule         rank, one pass; again without the rows that turned out to hold NaN or Inf
pivots              a column rule whose result is one more point: computed a tile at a time, within the Gram pass
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from byzflow.engine.audit import column_weights
from byzflow.engine.extras import extras_for, spread
from byzflow.engine.passes import column_pass, combine_pass, gram_pass, norm_pass
from byzflow.engine.report import Aggregation
from byzflow.errors import ByzflowError, ExtraError, NonFiniteRows, RowsError
from byzflow.gram import Gram
from byzflow.layout import Flat
from byzflow.operators import (
    Attack,
    Chain,
    CoordinateWise,
    Mixing,
    Nonfinite,
    Operator,
    PreAggregator,
    RowsOperator,
    Step,
    keywords,
)
from byzflow.ranks import RankMean
from byzflow.rows import AnyRows, Mixed, Ranked, Rows

Columns = Callable[[Tensor], Tensor]


class Sight(NamedTuple):
    """What a stage was given."""

    rows: AnyRows
    gram: Gram | None


@dataclass(frozen=True)
class Call:
    """One call, from the finite filter on: the rows that are left and all that belongs to them."""

    operator: Operator
    rows: AnyRows
    indices: tuple[int, ...]  # which of the input rows they are
    vectors: Mapping[str, Rows]
    extras: Mapping[str, Any]
    nonfinite: Nonfinite
    bound: int | None  # the f that was declared before rows were rejected
    infinite: Tensor | None = None  # (n,) bool, rows kept although they are not finite

    @property
    def stages(self) -> tuple[Operator, ...]:
        """The operators of a chain, or the one."""
        return self.operator.stages if isinstance(self.operator, Chain) else (self.operator,)

    def taken(self, stage: Operator, method: str | None = None) -> dict[str, Any]:
        """The extras that a stage takes, or one of its methods, other than vectors."""
        if not self.extras:
            return {}
        names = stage.accepts - stage.vector_names
        if method is not None:
            names &= keywords(type(stage), method)
        return {name: value for name, value in self.extras.items() if name in names}

    def remembered(self, stage: Operator, value: Any, seen: Sight, out: AnyRows) -> Mapping[str, Any]:
        """What a stage asks to be passed to the next call."""
        vectors = {name: each for name, each in self.vectors.items() if name in stage.vector_names}
        return stage.remember(Step(value, seen.rows, out, seen.gram, self.taken(stage), vectors))

    def rule(self, operator: CoordinateWise, n: int) -> RankMean | None:
        """The column rule as data, if that is all there is to it: no extras, and no kept row that is not finite."""
        plain = self.infinite is None and not self.taken(operator, "columns")
        return operator.rule(n) if plain else None

    def columns(self, rule: CoordinateWise) -> Columns:
        """A column rule with its extras; a kept NaN ranks as +inf."""
        rank: Columns = partial(rule.columns, **self.taken(rule, "columns"))
        if self.nonfinite == "keep":
            return lambda x: rank(torch.where(torch.isnan(x), torch.inf, x))
        return rank


@dataclass
class Work:
    """What the stages have made of the rows so far: combinations of them, never the rows themselves."""

    parts: list[AnyRows]
    names: dict[str, int]  # extra vectors behind the rows, and how many of each
    mixing: Tensor | None = None
    gram: Gram | None = None

    @property
    def rows(self) -> AnyRows:
        """The rows as the next stage sees them."""
        return self.parts[0] if self.mixing is None else Mixed(self.parts, self.mixing)

    def measured(self, infinite: Tensor | None) -> Gram:
        """The Gram of `rows`; a pass over the data if there is none yet."""
        if self.gram is None:
            inner, _ = gram_pass(self.rows, self.parts[1:])
            (inner,) = self.rows.layout.everywhere(inner)
            self.gram = Gram(inner, self.rows.n, dict(self.names), infinite)
        if self.gram.source is None and self.rows.layout.total is None:
            self.gram = replace(self.gram, source=self.rows)
        return self.gram

    def mix(self, weights: Tensor, passes_on: bool) -> None:
        """Apply a stage's weights (m, n) or (m, p - 1)."""
        assert self.gram is not None
        full = self.gram.affine(weights if weights.ndim == 2 else weights.unsqueeze(0))[:, : self.gram.origin]
        if self.mixing is not None:
            more = self.gram.origin - self.gram.n
            others = torch.eye(self.mixing.shape[1], dtype=torch.float64)[self.mixing.shape[1] - more :]
            full = full @ torch.cat([self.mixing, others])
        self.mixing = full
        self.gram = self.gram.mixed(weights) if passes_on else self.gram

    def add(self, name: str, vector: AnyRows) -> None:
        """One more extra vector; what was measured without it is of no more use."""
        self.parts.append(vector)
        self.names[name] = vector.n
        self.gram = None
        if self.mixing is not None:
            self.mixing = torch.cat([self.mixing, self.mixing.new_zeros(len(self.mixing), vector.n)], dim=1)


def execute(
    operator: Operator, rows: AnyRows, nonfinite: Nonfinite, extras: Mapping[str, Any], audit: bool
) -> Aggregation:
    """Aggregate, pre-aggregate or attack; see `Operator.explain`."""
    if nonfinite not in ("reject", "raise", "keep"):
        raise ExtraError(f"nonfinite must be 'reject', 'raise' or 'keep', got {nonfinite!r}")
    if isinstance(operator, Chain) and len(operator.stages) == 1:
        operator = operator.stages[0]
    extras = {name: value for name, value in extras.items() if value is not None}
    for name in extras.keys() - operator.accepts:
        takes = ", ".join(sorted(operator.accepts)) or "no extras"
        raise ExtraError(f"{operator} does not take {name!r}; it takes {takes}")
    if rows.layout.total is not None:
        check_shards(operator)
    first = operator.stages[0] if isinstance(operator, Chain) else operator
    if isinstance(first, CoordinateWise) and not isinstance(first, Mixing):
        return _by_column(first, rows, nonfinite, extras, audit)
    if isinstance(operator, Mixing) and operator.measures == "nothing" and _shows_nonfinite(rows):
        with suppress(ByzflowError):  # said again below, if it is more than that
            return _by_gram(operator, rows, nonfinite, extras, audit, blind=True)
    return _by_gram(operator, rows, nonfinite, extras, audit)


def check_shards(operator: Operator) -> None:
    """RowsError for what looks at whole rows; what looks at some coordinates is refused by its Gram."""
    for stage in operator.stages if isinstance(operator, Chain) else (operator,):
        if isinstance(stage, RowsOperator) or (isinstance(stage, Mixing) and type(stage).finish is not Mixing.finish):
            raise RowsError(f"{stage} needs whole rows, and here each place has some of their coordinates")


def _by_column(
    operator: CoordinateWise, rows: AnyRows, nonfinite: Nonfinite, extras: Mapping[str, Any], audit: bool
) -> Aggregation:
    """One pass that ranks and tests; if it met NaN or Inf, one more over the rows that are left."""
    operator.check(rows.n)
    everything = tuple(range(rows.n))
    call = Call(operator, rows, everything, {}, extras_for(extras, everything, rows.n), nonfinite, None)
    problem: ByzflowError | None = None
    try:
        answers, bad = column_pass(rows, call.columns(operator), rule=call.rule(operator, rows.n))
    except ByzflowError as error:  # of the extras of a row that is not to take part, perhaps
        answers, bad = column_pass(rows, lambda tile: tile[0])
        problem = error
    (bad,) = rows.layout.everywhere(bad)
    if problem is not None and (nonfinite != "reject" or not bool(bad.any())):
        raise problem
    call = _filter(operator, rows, bad, nonfinite, extras)
    assert isinstance(call.operator, CoordinateWise)
    if bool(bad.any()):
        rule = call.rule(call.operator, call.rows.n)
        answers, _ = column_pass(call.rows, call.columns(call.operator), rule=rule)
    value = _restore(call.operator, rows, answers)
    if not audit:
        return _report(call, rows, value, None, {}, {})
    state = call.remembered(call.operator, value, Sight(call.rows, None), call.rows)
    return _report(call, rows, value, column_weights(call.rows, None, call.columns(call.operator)), state, extras)


def _by_gram(
    operator: Operator,
    rows: AnyRows,
    nonfinite: Nonfinite,
    extras: Mapping[str, Any],
    audit: bool,
    blind: bool = False,
) -> Aggregation:
    """The Gram pass, the weights of every stage, then one pass that combines, mixes and ranks, or produces.

    `blind` leaves the first out, for one stage that measures nothing; NonFiniteRows if the answer shows that a row
    holds NaN or Inf.
    """
    call, work = _begin(operator, rows, nonfinite, extras, blind)
    seen: list[Sight] = []  # by each stage
    own: Gram | None = None  # of the rows themselves, before any mixing
    for k, stage in enumerate(call.stages):
        rows_in = work.rows
        if not isinstance(stage, Mixing):
            seen.append(Sight(rows_in, None))
            break
        for name, pivot in stage.pivots.items():
            if name not in work.names:
                work.add(name, _pivot(rows_in, pivot, call))
        gram = work.measured(call.infinite)
        own = gram if work.mixing is None else own
        seen.append(Sight(rows_in, gram))
        measured_again = any(isinstance(later, Mixing) for later in call.stages[k + 1 :])
        work.mix(stage.weights(gram, **call.taken(stage, "weights")), measured_again)
    last, columns, influence = call.stages[-1], None, work.mixing
    if isinstance(last, RowsOperator):
        vectors = {name: call.vectors[name] for name in last.vectors if name in call.vectors}
        answers, influence = _produced(last, work, call.taken(last) | vectors, audit)
    elif isinstance(last, CoordinateWise):
        columns = call.columns(last)
        answers, _ = column_pass(work.rows, columns, rule=call.rule(last, work.rows.n))
    else:
        answers = combine_pass(work.rows)
        assert isinstance(last, Mixing)
        if blind and not _shows_all_finite(work, answers):
            raise NonFiniteRows("a row holds NaN or Inf")
        for answer in answers:
            last.finish(answer, gram, **call.taken(last, "finish"))
    value = _restore(last, rows, answers)
    if not audit:
        return _report(call, rows, value, None, {}, {})
    state: dict[str, Any] = {}
    given = [*(each.rows for each in seen[1:]), work.rows]
    for stage, sight, out in zip(call.stages, seen, given, strict=True):
        state |= call.remembered(stage, value, sight, out)
    if columns is not None:
        influence = column_weights(work.parts, work.mixing, columns)
    report = _report(call, rows, value, influence, state, extras)
    return replace(report, distances=_distances(call, rows.n, own, work.mixing))


def _distances(call: Call, n: int, own: Gram | None, mixing: Tensor | None) -> Tensor | None:
    """(n,): of the input rows to a result that is `mixing` (1, p - 1) of the points of their own Gram."""
    last = call.stages[-1]
    plain = isinstance(last, Mixing) and type(last).finish is Mixing.finish
    if not plain or own is None or own.norms_only or mixing is None or mixing.shape != (1, own.origin):
        return None
    distances = torch.full((n,), torch.inf, dtype=torch.float64)
    distances[list(call.indices)] = own.squared_distances_to(mixing[0]).sqrt()
    return distances


def _produced(
    operator: RowsOperator, work: Work, extras: Mapping[str, Any], audit: bool
) -> tuple[list[Flat], Tensor | None]:
    """The answers and, for an audit, what each row weighs in them."""
    if not audit:
        return operator.produce(work.rows, **extras), None
    answers, weights = operator.explained(work.rows, **extras)
    if weights is None:
        return answers, None
    return answers, weights.unsqueeze(0) if work.mixing is None else weights.unsqueeze(0) @ work.mixing


def _shows_nonfinite(rows: AnyRows) -> bool:
    """Whether NaN and Inf outlast a combination (Inf in float64 is saturated), and looking for them is cheap.

    Not on shards, which would find different things.
    """
    return rows.layout.total is None and rows.layout.dtype == torch.float32 and rows.layout.device.type == "cpu"


def _shows_all_finite(work: Work, answers: list[Flat]) -> bool:
    """Whether every row has a share in the answers and these, with their sums, are finite."""
    shared = work.mixing is not None and bool((work.mixing[:, : work.parts[0].n] != 0).all())
    return shared and all(bool(leaf.sum().isfinite()) for answer in answers for leaf in answer)


def _begin(
    operator: Operator, rows: AnyRows, nonfinite: Nonfinite, extras: Mapping[str, Any], blind: bool
) -> tuple[Call, Work]:
    """The finite filter, in the pass that the first stage needs anyway."""
    vectors = extra_vectors(operator, rows, extras, rows.n)
    first = operator.stages[0] if isinstance(operator, Chain) else operator
    pivoted = isinstance(first, Mixing) and bool(first.pivots)  # then another Gram follows, of the rows that are left
    light = not vectors and (pivoted or _needs_norms_at_most(operator))
    if blind:  # NaN, so that no rule can take it for a measure
        inner, bad = (
            torch.full((rows.n + 1,) * 2, torch.nan, dtype=torch.float64),
            torch.zeros(rows.n, dtype=torch.bool),
        )
    else:
        inner, bad = rows.layout.everywhere(*(norm_pass(rows) if light else gram_pass(rows, list(vectors.values()))))
    gram = Gram(inner, rows.n, {name: each.n for name, each in vectors.items()}, norms_only=light)
    for name in vectors:
        points = list(gram.points(name))
        if not bool(torch.isfinite(inner[points, points]).all()):
            raise ExtraError(f"{name} holds NaN or Inf")
    call = _filter(operator, rows, bad, nonfinite, extras)
    if len(call.indices) < rows.n:
        left = [*call.indices]
        for name, each in vectors.items():
            points = list(gram.points(name))
            left += [points[i] for i in call.indices] if name in operator.memories else points
            vectors[name] = each.take(call.indices) if name in operator.memories else each
        index = torch.tensor([*left, gram.origin])
        counts = {name: each.n for name, each in vectors.items()}
        gram = Gram(inner[index][:, index], len(call.indices), counts, norms_only=light)
    gram = replace(gram, infinite=call.infinite)
    return replace(call, vectors=vectors), Work([call.rows, *vectors.values()], dict(gram.vectors), None, gram)


def _needs_norms_at_most(operator: Operator) -> bool:
    """Whether the one mixing among the stages, if any, does; behind another, even norms need the products."""
    stages = operator.stages if isinstance(operator, Chain) else (operator,)
    mixing = [stage for stage in stages if isinstance(stage, Mixing)]
    return len(mixing) <= 1 and all(stage.measures != "distances" and not stage.pivots for stage in mixing)


def extra_vectors(operator: Operator, rows: AnyRows, extras: Mapping[str, Any], n: int) -> dict[str, Rows]:
    """The extras that become points of the Gram of n rows like `rows`: one vector, or one a row (zero for None)."""
    vectors = {name: rows.vector(name, extras[name]) for name in operator.vectors if name in extras}
    for name in operator.memories & extras.keys():
        if len(extras[name]) != n:
            raise ExtraError(f"{name} needs one vector a row: {n}, got {len(extras[name])}")
        zero = rows.layout.restore([torch.zeros_like(leaf) for leaf in rows.layout.empty(1)[0]])
        vectors[name] = rows.vectors(name, [zero if each is None else each for each in extras[name]])
    return vectors


def _filter(operator: Operator, rows: AnyRows, bad: Tensor, nonfinite: Nonfinite, extras: Mapping[str, Any]) -> Call:
    """Apply the policy, then check that the operator is valid for the rows and the f that are left."""
    rejected = tuple(bad.nonzero().flatten().tolist())
    indices, bound = tuple(range(rows.n)), operator.made_for
    if rejected and nonfinite == "raise":
        raise NonFiniteRows(f"rows {', '.join(map(str, rejected))} hold NaN or Inf")
    if not rejected or nonfinite == "keep":
        operator.check(rows.n)
        kept = bad if rejected else None
        return Call(operator, rows, indices, {}, extras_for(extras, indices, rows.n), nonfinite, bound, kept)
    indices = tuple(i for i in indices if i not in rejected)
    if not indices:
        raise NonFiniteRows(f"all {rows.n} rows hold NaN or Inf: nothing is left to aggregate")
    reduced = operator.without(rejected, rows.n)
    reduced.check(len(indices))
    return Call(reduced, rows.take(indices), indices, {}, extras_for(extras, indices, rows.n), nonfinite, bound)


def _pivot(rows: AnyRows, pivot: CoordinateWise, call: Call) -> Ranked:
    columns, rule = call.columns(pivot), call.rule(pivot, rows.n)
    return Ranked(rows, lambda some: column_pass(some, columns, rule=rule)[0][0][0])


def _restore(last: Operator, rows: AnyRows, answers: Sequence[Flat]) -> Any:
    """One row, m rows, or an attack's f rows, in the kind of the input."""
    if isinstance(last, Attack) and len(answers) == 1:
        copies = ([leaf.clone() for leaf in answers[0]] for _ in range(last.f - 1))
        answers = [answers[0], *copies][: last.f]
    many = isinstance(last, PreAggregator | Attack) or (isinstance(last, RowsOperator) and last.many)
    return rows.layout.restore_all(answers) if many else rows.layout.restore(list(answers[0]))


def _report(
    call: Call,
    rows: AnyRows,
    value: Any,
    weights: Tensor | None,
    state: Mapping[str, Any],
    given: Mapping[str, Any],
) -> Aggregation:
    if weights is not None:
        full = torch.zeros(weights.shape[0], rows.n, dtype=torch.float64)
        full[:, list(call.indices)] = weights[:, : len(call.indices)]
        weights = full[0] if full.shape[0] == 1 else full
    rejected = tuple(sorted(set(range(rows.n)) - set(call.indices)))
    return Aggregation(
        value=value,
        operator=str(call.operator),
        n=len(call.indices),
        weights=weights,
        rejected=rejected,
        bound_exceeded=call.bound is not None and len(rejected) > call.bound,
        state=spread(state, call.indices, rows.n, given),
    )
