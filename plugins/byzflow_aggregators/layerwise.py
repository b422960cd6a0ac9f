"""A rule applied to every layer by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from byzflow.engine.execute import execute
from byzflow.engine.report import Aggregation
from byzflow.errors import SpecError
from byzflow.layout import Flat, Span
from byzflow.operators import Attack, Chain, Operator, PreAggregator, RowsOperator, Step, param
from byzflow.rows import AnyRows, Rows


@dataclass(frozen=True)
class Layerwise(RowsOperator):
    """A rule applied to every leaf of the rows by itself, so that each layer has its own weights.

    Leaves are what a row's mapping names; a plain vector is one leaf. Distances and angles of a whole model are those
    of its largest layers: an attack on a small one hides behind them. A column rule gives the same with and without.
    Extra vectors of the rule are cut up likewise. A row's weight is the mean over all coordinates.
    """

    name: ClassVar[str] = "layerwise"
    rule: Operator = param("the rule, or chain")

    def __post_init__(self) -> None:
        """The rule makes one row and remembers nothing of single layers."""
        super().__post_init__()
        stages = _stages(self.rule)
        if isinstance(stages[-1], PreAggregator | Attack):
            raise SpecError(f"layerwise: rule must make one row, {self.rule} does not")
        if self.rule.memories or "history" in self.rule.accepts:
            raise SpecError(f"layerwise cannot keep the state of {self.rule} for every layer")
        for flag in ("vectors", "shift_invariant", "permutation_equivariant"):
            object.__setattr__(self, flag, getattr(self.rule, flag))

    @property
    def min_senders(self) -> int:
        """its rule needs."""
        return self.rule.min_senders

    def check(self, n: int) -> None:
        """As the rule."""
        self.rule.check(n)

    @property
    def made_for(self) -> int | None:
        """The rule's."""
        return self.rule.made_for

    def shrunk(self, count: int) -> Self:
        """The rule for fewer."""
        return replace(self, rule=self.rule.shrunk(count))

    def without(self, rejected: tuple[int, ...], n: int) -> Self:
        """The rule without them."""
        return replace(self, rule=self.rule.without(rejected, n))

    @property
    def accepts(self) -> frozenset[str]:
        """Extras of the rule."""
        return self.rule.accepts

    def remember(self, step: Step) -> Mapping[str, Any]:
        """As the rule, of the whole result."""
        return {name: value for stage in _stages(self.rule) for name, value in stage.remember(step).items()}

    def produce(self, rows: AnyRows, **extras: Any) -> list[Flat]:
        """The rule's result on each leaf."""
        return [[part.value.view(-1) for part in self._parts(rows, extras, audit=False)]]

    def explained(self, rows: AnyRows, **extras: Any) -> tuple[list[Flat], Tensor | None]:
        """Also the mean of the weights, by the size of the leaves."""
        parts = self._parts(rows, extras, audit=True)
        total = torch.zeros(rows.n, dtype=torch.float64)
        for leaf, part in zip(rows.layout.leaves, parts, strict=True):
            if leaf.numel and part.weights is None:
                return [[part.value.view(-1) for part in parts]], None
            total += 0 if part.weights is None else part.weights * (leaf.numel / rows.layout.d)
        return [[part.value.view(-1) for part in parts]], total

    def _parts(self, rows: AnyRows, extras: Mapping[str, Any], audit: bool) -> list[Aggregation]:
        parts = []
        for k, leaf in enumerate(rows.layout.leaves):
            if not leaf.numel:  # nothing to measure, so nothing that could fail
                parts.append(Aggregation(rows.layout.empty(1)[0][k], str(self.rule), rows.n))
                continue
            own = {name: value.sources[0][k] if isinstance(value, Rows) else value for name, value in extras.items()}
            # rows were filtered already: those that are not finite are here because the caller keeps them
            parts.append(execute(self.rule, rows.cut(Span(k, 0, leaf.numel)), "keep", own, audit))
        return parts


def _stages(rule: Operator) -> tuple[Operator, ...]:
    return rule.stages if isinstance(rule, Chain) else (rule,)
