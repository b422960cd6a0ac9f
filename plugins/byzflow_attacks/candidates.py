"""Rows that attackers could send, and what the defence makes of each, without another pass over the rows.

A candidate is f equal rows `start + u slope`, where start and slope are combinations of the honest rows and of a few
vectors (their standard deviation, what was received). One Gram of all these gives the Gram of the poisoned rows for
every u, and a span defence sees nothing else. A column rule is run on a fixed sample of SAMPLE coordinates, behind
weights that are exact; a defence that is neither is run on the sample alone. The defence is only ever asked: what it
remembers from call to call is passed in as `state` and stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from byzflow.engine.execute import Work, extra_vectors
from byzflow.engine.extras import extras_for
from byzflow.engine.passes import combine_pass, gram_pass
from byzflow.errors import ExtraError
from byzflow.gram import Gram
from byzflow.layout import Flat
from byzflow.operators import (
    Attack,
    Chain,
    CoordinateWise,
    Mixing,
    Operator,
    PreAggregator,
    RowsOperator,
    keywords,
    seeded,
)
from byzflow.rows import AnyRows, Mixed, Rows, saturated
from byzflow.spec import parse_rule
from byzflow_attacks.directions import length

SAMPLE = 1 << 12  # coordinates on which column rules are judged
PEAKS = 5  # that are narrowed down at a time


@dataclass(frozen=True)
class Fitted(Attack, RowsOperator):
    """Base of attacks that look for the row, sent by all f, which does a known defence most harm."""

    def produce(
        self,
        rows: AnyRows,
        *,
        against: str | Operator | None = None,
        against_state: Mapping[str, Any] | None = None,
    ) -> list[Flat]:
        """One answer. `against` is the defence, a spec or an operator, and `against_state` what it remembers."""
        if not self.f:
            return []
        return self.worst(Candidates(rows, self.beside(rows), self.f, against, against_state))

    def beside(self, rows: AnyRows) -> list[Rows]:
        """Vectors that the row may be made of, besides the honest rows."""
        return []

    def worst(self, candidates: Candidates) -> list[Flat]:
        """The row."""
        raise NotImplementedError


class Candidates:
    """Rows beside h honest ones, against a defence that is declared f faulty rows."""

    def __init__(
        self,
        rows: AnyRows,
        vectors: Sequence[Rows],
        f: int,
        against: str | Operator | None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """`vectors` become points h, h + 1, ... of the weights; `state` are the extras of the defence's call."""
        self.rows, self.vectors, self.f = rows, list(vectors), f
        self.n = rows.n + f
        self.defence = defender(against, f)
        self.defence.check(self.n)
        self.state = {name: value for name, value in (state or {}).items() if value is not None}
        for name in self.state.keys() - self.defence.accepts:
            raise ExtraError(f"{self.defence} does not take {name!r}")
        self.remembered = extra_vectors(self.defence, rows, self.state, self.n)
        inner, _ = gram_pass(rows, [*self.vectors, *self.remembered.values()])
        self.counts = {name: each.n for name, each in self.remembered.items()}
        self.gram = Gram(inner, rows.n, {"vectors": len(self.vectors), **self.counts})
        self.known = rows.n + len(self.vectors)  # points that a candidate may stand on
        self.mean = torch.zeros(self.known, dtype=torch.float64)
        self.mean[: rows.n] = 1 / rows.n
        self.spread = float(self.gram.squared_distances_to(self.mean).mean().sqrt())
        self._extras = extras_for(self.state, range(self.n), self.n)
        self._sampled: list[Tensor] | None = None

    @property
    def stages(self) -> tuple[Operator, ...]:
        """Of the defence."""
        return self.defence.stages if isinstance(self.defence, Chain) else (self.defence,)

    @property
    def weighed(self) -> bool:
        """Whether the weights of the defence follow from the Gram."""
        mixing = [stage for stage in self.stages if isinstance(stage, Mixing)]
        rest = self.stages[len(mixing) :]
        return not any(stage.pivots for stage in mixing) and all(isinstance(s, CoordinateWise) for s in rest)

    def vector(self, index: int) -> Tensor:
        """Weights of one of the vectors."""
        weights = torch.zeros(self.known, dtype=torch.float64)
        weights[self.rows.n + index] = 1
        return weights

    def unit(self, slope: Tensor) -> float:
        """The u for which u slope is as long as honest rows are away from their mean, root mean square; inf for 0."""
        norm = length(self.gram, slope)
        return self.spread / norm if norm > 0 else torch.inf

    def answers(self, weights: Tensor) -> list[Flat]:
        """The row of these weights, as an attack returns it."""
        mixed = Mixed([self.rows, *self.vectors], weights.unsqueeze(0))
        return combine_pass(mixed)

    def poisoned(self, weights: Tensor) -> Gram:
        """The Gram of the honest rows, f rows of these weights, and what the defence remembers."""
        h = self.rows.n
        honest = torch.eye(h, self.known, dtype=torch.float64)
        small = self.gram.mixed(torch.cat([honest, weights.unsqueeze(0)]))
        rest = range(h + 1 + len(self.vectors), small.origin + 1)
        index = torch.tensor([*range(h), *[h] * self.f, *rest])  # the f rows are equal to the last bit
        every = torch.cat([honest, weights.expand(self.f, -1)])
        source = Mixed([self.rows, *self.vectors], every)
        return Gram(small.inner[index][:, index], self.n, self.counts, source=source)

    def mixing(self, gram: Gram) -> Tensor | None:
        """(m, p - 1): the weights of the defence's stages on the poisoned rows; None if it starts with columns."""
        assert gram.source is not None
        work = Work([gram.source, *self.remembered.values()], self.counts, None, gram)
        for stage in self.stages:
            if isinstance(stage, Mixing):
                weights = stage.weights(work.measured(None), **self._taken(stage, "weights"))
                work.mix(weights, isinstance(stage, PreAggregator))
        return work.mixing

    def damage(self, weights: Tensor) -> float:
        """How far the defence's result is from the honest mean; on the sample, if it ends in a column rule."""
        if not self.weighed:
            return self._on_sample(self._everything, weights)
        gram = self.poisoned(weights)
        mixing = self.mixing(gram)
        if isinstance(self.stages[-1], CoordinateWise):
            return self._on_sample(lambda x, _: self._ranked(x if mixing is None else mixing @ x), weights)
        assert mixing is not None
        mean = torch.zeros_like(mixing[0])
        mean[: self.rows.n] = 1 / self.rows.n
        return length(gram, mixing[0] - mean)

    def selected(self, weights: Tensor) -> bool | None:
        """Whether the defence takes as many of the f rows as it can, none of them less than honest ones.

        None where its weights do not show it: it ranks coordinates, or is not found from the Gram.
        """
        if not self.weighed or not isinstance(self.stages[-1], Mixing):
            return None
        mixing = self.mixing(self.poisoned(weights))
        assert mixing is not None
        taken = (mixing[:, : self.n] != 0).any(0)
        return int(taken[self.rows.n :].sum()) == min(self.f, int(taken.sum()))

    def strongest(self, start: Tensor, slope: Tensor, limit: float) -> Tensor:
        """Weights of `start + u slope`, 0 <= u <= limit units: the largest u selected, or else the most damage.

        A defence that takes the rows even at the limit does not select; there, too, the damage decides.
        """
        reach = limit * self.unit(slope)
        if not 0 < reach < torch.inf:
            return start
        if self.selected(start + reach * slope) is False:
            u = largest(lambda u: self.selected(start + u * slope) is True, reach)
        else:
            u = most(lambda u: self.damage(start + u * slope), 0, reach, self.unit(slope))
        return start + u * slope

    def _taken(self, stage: Operator, method: str) -> dict[str, Any]:
        names = keywords(type(stage), method) - stage.vector_names
        return {name: value for name, value in self._extras.items() if name in names}

    def _ranked(self, x: Tensor) -> Tensor:
        last = self.stages[-1]
        assert isinstance(last, CoordinateWise)
        return last.columns(x, **self._taken(last, "columns"))

    def _everything(self, x: Tensor, remembered: Sequence[Tensor]) -> Tensor:
        """The whole defence, on the sample."""
        extras: dict[str, Any] = {
            name: list(values) if name in self.defence.memories else values[0]
            for name, values in zip(self.remembered, remembered, strict=True)
        }
        result: Tensor = self.defence(x[: self.n], **{**self.state, **extras})
        return result

    def _on_sample(self, defence: Callable[[Tensor, Sequence[Tensor]], Tensor], weights: Tensor) -> float:
        if self._sampled is None:
            places = sample_places(self.rows.layout.d)
            parts = [self.rows, *self.vectors, *self.remembered.values()]
            self._sampled = [saturated(part.pick(places)).cpu() for part in parts]
        honest, rest = self._sampled[0], self._sampled[1 + len(self.vectors) :]
        row = weights @ torch.cat(self._sampled[: 1 + len(self.vectors)])
        poisoned = torch.cat([honest, row.expand(self.f, -1), *rest])
        return float(torch.linalg.vector_norm(defence(poisoned, rest) - honest.mean(0)))


def defender(against: str | Operator | None, f: int) -> Operator:
    """The operator that an attack is made against."""
    if against is None:
        raise ExtraError("the attack is made against a defence: pass against=..., such as 'nnm | trimmed_mean'")
    return parse_rule(against, f)


def sample_places(d: int) -> Tensor:
    """The coordinates of the sample, in order; all of them if there are few."""
    if d <= SAMPLE:
        return torch.arange(d)
    return torch.randint(d, (SAMPLE,), generator=seeded(0, "sample", 0)).sort().values


def most(value: Callable[[float], float], low: float, high: float, unit: float, evaluations: int = 200) -> float:
    """Where in [low, high] `value` is largest, of that many places: a grid finer towards 0, then around its peaks.

    Of equally good places (relative 1e-9) the nearest to 0 that is positive.
    """
    reach: float = max(abs(low), abs(high))
    unit = min(unit, reach)
    finest = unit / 32 if unit > 0 else reach / 1000
    steps = torch.logspace(0, 1, evaluations * 3 // 10, base=reach / finest, dtype=torch.float64)
    magnitudes = [finest * float(step) for step in steps]
    even = torch.linspace(low, high, evaluations // 10, dtype=torch.float64).tolist()
    grid = {low, high, *even, *(u for m in magnitudes for u in (m, -m) if low <= u <= high)}
    values = {u: value(u) for u in grid}
    while len(values) < evaluations:
        places = sorted(values)
        heights = [values[u] for u in places]
        padded = [-torch.inf, *heights, -torch.inf]
        tops = [i for i, v in enumerate(heights) if v >= max(padded[i], padded[i + 2])]
        tops = sorted(tops, key=lambda i: -heights[i])[:PEAKS]
        pairs = [(i, j) for i in tops for j in (i - 1, i + 1) if 0 <= j < len(places)]
        between = {(places[i] + places[j]) / 2 for i, j in pairs} - values.keys()
        if not between:
            break
        values |= {u: value(u) for u in sorted(between)[: evaluations - len(values)]}
    best = max(values.values())
    ties: list[float] = [u for u, v in values.items() if v >= best - 1e-9 * abs(best)]
    return min(ties, key=lambda u: (u < 0, abs(u)))


def largest(holds: Callable[[float], bool], high: float, tolerance: float = 1e-5) -> float:
    """The largest u in [0, high] found for which `holds`, to a relative tolerance; 0 if there is none."""
    low, least = high, high * 1e-6
    while not holds(low):
        high, low = low, low / 1.25
        if low < least:
            return 0.0
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
