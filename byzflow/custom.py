"""Operators of your own as plain functions of the rows, where neither weights nor columns are what you think in.

    class Middle(Aggregator):
        name = "middle"

        def aggregate(self, gradients):
            return torch.stack(gradients).quantile(0.5, dim=0)

They run wherever byzflow's own do: in a chain, a graph, a federation. Subclasses may have an `__init__` of their own.
Rows come as copies, one by one in the kind that the caller gave; all of them are in memory at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from byzflow import operators
from byzflow.errors import SpecError
from byzflow.layout import Flat, Span
from byzflow.operators import Chain, Operator, RowsOperator
from byzflow.parameters import faults
from byzflow.rows import AnyRows
from byzflow.spec import parse

Stage = str | Operator
Shrinking = TypeVar("Shrinking", bound=Operator)


class Aggregator(RowsOperator):
    """Base of rules that make one row of n. Write `aggregate`; a subclass with an attribute `f` is one for f."""

    name: ClassVar[str] = "aggregator"

    def aggregate(self, rows: Any) -> Any:
        """One row, in the kind and shape of the rows; they are copies."""
        raise NotImplementedError(f"{type(self).__name__} needs a method aggregate(rows)")

    def produce(self, rows: AnyRows) -> list[Flat]:
        """The one answer. Raises RowsError if it is not like the rows."""
        return [_answer(self, rows, self.aggregate(listed(rows)))]

    def shrunk(self, count: int) -> Self:
        """A copy for f - count Byzantine rows."""
        return _shrunk(self, count)


class PreAggregator(RowsOperator):
    """Base of steps in front of a rule that make m rows of n. Write `pre_aggregate`."""

    name: ClassVar[str] = "pre_aggregator"
    many: ClassVar[bool] = True

    def pre_aggregate(self, rows: Any) -> Any:
        """A list of m rows, in the kind and shape of the rows; those are copies."""
        raise NotImplementedError(f"{type(self).__name__} needs a method pre_aggregate(rows)")

    def out_rows(self, n: int) -> int:
        """As many as came in, as far as anybody knows."""
        return n

    def produce(self, rows: AnyRows) -> list[Flat]:
        """The m answers."""
        return [_answer(self, rows, row) for row in self.pre_aggregate(listed(rows))]

    def shrunk(self, count: int) -> Self:
        """A copy for f - count Byzantine rows."""
        return _shrunk(self, count)


@dataclass(frozen=True)
class Attack(operators.Attack, RowsOperator):
    """Base of attacks that make one row for one attacker. Write `apply`, and say by the flags what it needs."""

    name: ClassVar[str] = "custom_attack"
    uses_base_grad: ClassVar[bool] = False
    uses_model_batch: ClassVar[bool] = False
    uses_honest_grads: ClassVar[bool] = False
    f: int = faults("Byzantine rows to produce", 1)

    def apply(
        self, *, model: Any = None, x: Any = None, y: Any = None, honest_grads: Any = None, base_grad: Any = None
    ) -> Any:
        """One row: what this attacker sends."""
        raise NotImplementedError(f"{type(self).__name__} needs a method apply(*, honest_grads=None, ...)")

    def produce(self, rows: AnyRows) -> list[Flat]:
        """f answers, one call each, of the honest rows."""
        return [_answer(self, rows, self.apply(honest_grads=listed(rows))) for _ in range(self.f)]


@dataclass(frozen=True)
class Composed(Aggregator):
    """Steps of which not all are byzflow's own, then a rule: one after the other, rows in between as lists."""

    name: ClassVar[str] = "composed"
    stages: tuple[Operator, ...]

    def __post_init__(self) -> None:
        """All stages but the last must give rows on."""
        if wrong := [str(stage) for stage in self.stages[:-1] if not hasattr(stage, "pre_aggregate")]:
            raise SpecError(f"{wrong[0]} gives no rows on: {self.stages[-1]} stands behind pre-aggregators alone")

    def aggregate(self, rows: Any) -> Any:
        """Through all stages."""
        for stage in self.stages[:-1]:
            rows = list(stage.pre_aggregate(rows))  # type: ignore[attr-defined]
        return self.stages[-1].aggregate(rows)

    @property
    def made_for(self) -> int | None:
        """The largest f of its stages."""
        return max((stage.made_for for stage in self.stages if stage.made_for is not None), default=None)

    def shrunk(self, count: int) -> Self:
        """Every stage."""
        return type(self)(tuple(stage.shrunk(count) for stage in self.stages))

    def __str__(self) -> str:
        return " | ".join(map(str, self.stages))


def compose(pre: Stage | Sequence[Stage] | None, rule: Stage, f: int | None = None) -> Operator:
    """The steps of `pre`, one or several or none, then the rule: specs, byzflow's operators, or custom ones.

    Where all are byzflow's it is a `Chain`, which needs two passes over the rows at most. Raises SpecError for what is
    neither, and for a step that is no pre-aggregator.
    """
    before = [] if pre is None else [pre] if isinstance(pre, str | Operator) else list(pre)
    flat: list[Operator] = []
    for stage in (*before, rule):
        if not isinstance(stage, str | Operator):
            raise SpecError(
                f"{type(stage).__name__} is no operator: subclass byzflow.custom.Aggregator or PreAggregator, "
                "or write a spec such as 'nnm | trimmed_mean'"
            )
        operator = parse(stage, f=f)
        flat += operator.stages if isinstance(operator, Chain | Composed) else (operator,)
    if len(flat) == 1:
        return flat[0]
    custom = any(isinstance(stage, Aggregator | PreAggregator) for stage in flat)
    return Composed(tuple(flat)) if custom else Chain(tuple(flat))


def listed(rows: AnyRows) -> list[Any]:
    """n rows, copies, each in the kind of the rows."""
    layout = rows.layout
    leaves = [rows.tile(Span(k, 0, leaf.numel)).to(leaf.dtype) for k, leaf in enumerate(layout.leaves)]
    return [layout.restore([leaf[i] for leaf in leaves]) for i in range(rows.n)]


def _answer(operator: Operator, rows: AnyRows, value: Any) -> Flat:
    """What a method of foreign code gave, as an answer like the rows. Raises RowsError naming the operator."""
    (flat,) = rows.vector(f"the answer of {operator.name}", value).sources
    return [part.to(leaf.dtype) for part, leaf in zip(flat, rows.layout.leaves, strict=True)]


def _shrunk(operator: Shrinking, count: int) -> Shrinking:
    if not operator.declared:
        return operator
    smaller = copy(operator)
    object.__setattr__(smaller, "f", max(0, operator.declared - count))
    return smaller
