"""The kinds of operator, and chains of them.

    Operator                a frozen dataclass with a name; its fields are its parameters
    ├── Mixing              weights(gram) -> (n,): the result is weights @ rows          Krum, geometric median
    │   └── PreAggregator   weights(gram) -> (m, n): m rows for the next stage           NNM, clipping, bucketing
    ├── CoordinateWise      columns(x) with x (n, b) -> (b,): column by column           median, trimmed mean
    ├── RowsOperator        produce(rows): the few that are neither                      noise
    ├── Attack              mixed into one of the kinds: the result is sent by f rows    ALIE, IPM
    └── Chain               "arc | nnm | trimmed_mean": pre-aggregators, then one rule

A plugin author writes the one method of one kind. An operator keeps nothing between two calls: keyword-only
arguments of that method are the extras of the call (`permutation`, `round`), `vectors` names extra vectors of
d coordinates that become points of the Gram (`center`), and `remember` returns the extras of the next call.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from byzflow.engine.report import Aggregation
from byzflow.errors import ExtraError, NotEnoughSenders, SpecError
from byzflow.gram import Gram
from byzflow.layout import Flat
from byzflow.parameters import faults, param, parameters, show
from byzflow.ranks import RankMean
from byzflow.robustness import Bounds
from byzflow.rows import AnyRows, Rows

if TYPE_CHECKING:
    from byzflow.engine.plan import Plan

__all__ = [
    "Attack",
    "Chain",
    "CoordinateWise",
    "Mixing",
    "Operator",
    "PreAggregator",
    "RowsOperator",
    "faults",
    "gathered",
    "param",
    "seeded",
]

Nonfinite = Literal["reject", "raise", "keep"]
Knowledge = Literal["omniscient", "colluders", "own"]


@dataclass(frozen=True, eq=False)
class Step:
    """What one stage of a call saw and gave, for what it may have to remember."""

    value: Any
    """The result of the whole call, in the kind of the rows."""
    rows: AnyRows
    """The rows that came into the stage, and `out`, those that a mixing made of them."""
    out: AnyRows
    gram: Gram | None
    extras: Mapping[str, Any]
    vectors: Mapping[str, Rows] = field(default_factory=dict)
    """The extra vectors of the stage, as rows."""


@dataclass(frozen=True)
class Operator:
    """Something named that maps n rows to one row or several; immutable, and safe to share between threads."""

    name: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = ""
    vectors: ClassVar[tuple[str, ...]] = ()
    """Extras that are one vector of d coordinates each."""
    memories: ClassVar[frozenset[str]] = frozenset()
    """Extras that are one vector a row each."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Parameters that give another library's variant, by its name; see `byzflow.spec.PRESETS`."""
    kind: ClassVar[str] = ""
    shift_invariant: ClassVar[bool] = False
    """A common offset of all rows moves the result by the same offset."""
    permutation_equivariant: ClassVar[bool] = True
    """The order of the rows does not matter."""

    def __post_init__(self) -> None:
        """Check every parameter against its annotation and its range."""
        for parameter in parameters(type(self)):
            checked = parameter.check(self.name, getattr(self, parameter.name))
            object.__setattr__(self, parameter.name, checked)

    @property
    def min_senders(self) -> int:
        """The smallest n for which the rule is valid."""
        return 1

    def check(self, n: int) -> None:
        """Raise NotEnoughSenders (or SpecError) if the operator is not valid for n rows."""
        if n < self.min_senders:
            raise NotEnoughSenders(str(self), self.min_senders, n)

    def out_rows(self, n: int) -> int:
        """Rows that come out when n come in."""
        return 1

    @property
    def made_for(self) -> int | None:
        """The f it was made for; None where it has none."""
        return getattr(self, "f", None)

    @property
    def declared(self) -> int:
        """The f it was made for; 0 where it has none."""
        return self.made_for or 0

    def shrunk(self, count: int) -> Self:
        """The operator for f - count Byzantine rows, at least 0: so many of them are known and gone."""
        if not self.declared:
            return self
        smaller: dict[str, Any] = {"f": max(0, self.declared - count)}
        return replace(self, **smaller)

    def without(self, rejected: tuple[int, ...], n: int) -> Self:
        """The operator for the rows that are left when some of n were rejected: f shrinks with them."""
        return self.shrunk(len(rejected))

    @property
    def vector_names(self) -> frozenset[str]:
        """Extras that become points of the Gram."""
        return frozenset(self.vectors) | self.memories

    @property
    def accepts(self) -> frozenset[str]:
        """Names of the extras that a call may pass."""
        return extras_of(type(self))  # type: ignore[arg-type]  # classes do hash

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """What is proven of it for n rows, f of them Byzantine, of d coordinates (any d if None)."""
        return Bounds(note="nothing is proven here")

    def remember(self, step: Step) -> Mapping[str, Any]:
        """Extras to pass to the next call: the state of a rule that has one."""
        return {"round": step.extras.get("round", 0) + 1} if "round" in self.accepts else {}

    def __call__(self, rows: Any, *, nonfinite: Nonfinite = "reject", **extras: Any) -> Any:
        """The result in the kind, dtype and device of the rows. Rows are never modified."""
        return self.run(rows, nonfinite=nonfinite, **extras).value

    def explain(self, rows: Any, *, nonfinite: Nonfinite = "reject", **extras: Any) -> Aggregation:
        """As a call, with the audit: weights, rejected rows and the state for the next call."""
        return self.run(rows, nonfinite=nonfinite, audit=True, **extras)

    def aggregate(self, rows: Any) -> Any:
        """As a call."""
        return self(rows)

    def __rshift__(self, rest: Operator) -> Operator:
        """`nnm >> median`: this, then the rest; a Chain where both are byzflow's own."""
        from byzflow.custom import compose

        return compose([self], rest)

    def run(self, rows: Any, *, nonfinite: Nonfinite, audit: bool = False, **extras: Any) -> Aggregation:
        """Execute on rows; the engine knows the kinds, so it is imported when the first call is made."""
        from byzflow.engine.execute import execute

        return execute(self, rows if isinstance(rows, AnyRows) else Rows.of(rows), nonfinite, extras, audit)

    def plan(self, n: int, d: int) -> Plan:
        """Its passes over n rows of d float32 coordinates: bytes, operations and expected time on this machine."""
        from byzflow.engine.plan import plan

        return plan(self, n, d)

    def __str__(self) -> str:
        """The spec that `byzflow.parse` reads back."""
        changed = [
            f"{p.name}={show(getattr(self, p.name))}"
            for p in parameters(type(self))
            if p.default is MISSING or getattr(self, p.name) != p.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


@dataclass(frozen=True)
class Mixing(Operator):
    """A rule whose result is `weights @ rows`, the weights found from the rows' Gram alone."""

    kind: ClassVar[str] = "span"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "distances"
    """What `weights` looks at; a rule that needs norms at most is spared the products of the rows, one that needs
    nothing the whole pass."""

    @property
    def pivots(self) -> Mapping[str, CoordinateWise]:
        """Column rules whose results on the rows become extra vectors, for a rule that measures against them."""
        return {}

    def weights(self, gram: Gram) -> Tensor:
        """(n,) float64, or (p - 1,) with weights on the extra vectors behind the rows."""
        raise NotImplementedError

    def finish(self, answer: Flat, gram: Gram) -> None:
        """Change the combined row in place, such as by adding noise; nothing unless a rule says otherwise."""


@dataclass(frozen=True)
class PreAggregator(Mixing):
    """A mixing that gives m rows: `weights` is (m, n)."""

    def out_rows(self, n: int) -> int:
        """As many rows as came in, unless a rule says otherwise."""
        return n

    def pre_aggregate(self, rows: Any) -> list[Any]:
        """As a call, in a list of m rows."""
        return list(self(rows))

    def improve(self, rest: Bounds, n: int, f: int) -> Bounds:
        """The bounds of a chain of this and what follows, from those of what follows."""
        return Bounds(breakdown=rest.breakdown, note=f"nothing is proven for {self.name} in front of another rule")


@dataclass(frozen=True)
class CoordinateWise(Operator):
    """A rule whose coordinate k depends on column k alone."""

    kind: ClassVar[str] = "coordinate"

    def columns(self, x: Tensor) -> Tensor:
        """(n, b) -> (b,), any b; x is float32 or float64 and must not be modified."""
        rule = self.rule(len(x))
        if rule is None:
            raise NotImplementedError(f"{type(self).__name__} needs a method columns(x), or rule(n)")
        return rule(x)

    def rule(self, n: int) -> RankMean | None:
        """The rule for n rows as data, where it is one of `byzflow.ranks`: then compiled kernels run it."""
        return None


@dataclass(frozen=True)
class RowsOperator(Operator):
    """A rule that is neither: it sees the rows as they are."""

    kind: ClassVar[str] = "rows"
    many: ClassVar[bool] = False
    """If it gives rows on, not one result."""

    def produce(self, rows: AnyRows) -> list[Flat]:
        """The answers, each as flat leaves (see `Layout.empty`); extra vectors come as `Rows` of one, by keyword."""
        raise NotImplementedError

    def explained(self, rows: AnyRows, **extras: Any) -> tuple[list[Flat], Tensor | None]:
        """`produce`, and (n,) what each row weighs in the answer, where that can be said."""
        return self.produce(rows, **extras), None


@dataclass(frozen=True)
class Attack(Operator):
    """Mixed into a kind: what f Byzantine rows send, given the h honest rows. A call returns f rows.

    With knowledge=colluders it is made from the attackers' own clean rows instead, passed as `own` (k rows); with
    knowledge=own each attacker uses its own row alone, and `own` holds f rows. An attack that counts the honest
    rows takes their number as the extra `honest`: it is filled in here, for `own` does not tell it.
    """

    f: int = faults("Byzantine rows to produce")
    knowledge: Knowledge = param("whose rows it is made from", "omniscient", kw_only=True)

    @property
    def made_for(self) -> int | None:
        """None: its f are rows that it makes."""
        return None

    @property
    def uses_honest_grads(self) -> bool:
        """If `apply` needs the honest rows."""
        return self.knowledge == "omniscient"

    @property
    def uses_base_grad(self) -> bool:
        """If `apply` needs the attacker's own clean row."""
        return self.knowledge != "omniscient"

    @property
    def uses_model_batch(self) -> bool:
        """If `apply` needs a model and a batch."""
        return False

    def apply(
        self, *, model: Any = None, x: Any = None, y: Any = None, honest_grads: Any = None, base_grad: Any = None
    ) -> Any:
        """One row: what the first attacker sends. Raises ExtraError if what it needs (see the flags) is not given."""
        if self.uses_base_grad:
            if base_grad is None:
                raise ExtraError(f"{self} is made from the attacker's own row: pass base_grad=...")
            rows = [base_grad] if honest_grads is None else honest_grads
            return replace(self, f=1)(rows, own=[base_grad])[0]
        if honest_grads is None:
            raise ExtraError(f"{self} is made from the honest rows: pass honest_grads=...")
        return (self if self.f else replace(self, f=1))(honest_grads)[0]

    def out_rows(self, n: int) -> int:
        """f rows, whatever comes in."""
        return self.f

    def shrunk(self, count: int) -> Self:
        """An attack sends f rows whatever happens to the honest ones."""
        return self

    def run(
        self, rows: Any, *, nonfinite: Nonfinite, audit: bool = False, own: Any = None, **extras: Any
    ) -> Aggregation:
        """As any operator, on the rows that the attackers know."""
        if self.knowledge == "omniscient" or not self.f:
            return super().run(rows, nonfinite=nonfinite, audit=audit, **extras)
        if own is None:
            raise ExtraError(f"{self} is made from the attackers' own rows: pass own=...")
        own = Rows.of(own)
        if "honest" in self.accepts:
            extras = {"honest": Rows.of(rows).n} | extras
        if self.knowledge == "colluders":
            return super().run(own, nonfinite=nonfinite, audit=audit, **extras)
        if own.n != self.f:
            raise ExtraError(f"{self} needs one own row for each of f = {self.f} attackers, got {own.n}")
        known = replace(self, knowledge="colluders")
        runs = [known.run(rows, nonfinite=nonfinite, audit=audit, own=own.take([i]), **extras) for i in range(self.f)]
        value = gathered(own, [run.value[i] for i, run in enumerate(runs)])
        return replace(runs[0], value=value, operator=str(self), n=own.n, weights=None)


@dataclass(frozen=True)
class Chain(Operator):
    """Pre-aggregators, then one rule: each works on the rows that the one before gives."""

    name: ClassVar[str] = "chain"
    stages: tuple[Operator, ...]

    def __post_init__(self) -> None:
        """All stages but the last must give rows on."""
        for stage in self.stages[:-1]:
            if not isinstance(stage, PreAggregator):
                raise SpecError(f"{stage.name} must be the last stage of {self}: only pre-aggregators give rows on")
        if any(isinstance(stage, Attack) for stage in self.stages[1:]) or not self.stages:
            raise SpecError(f"an attack cannot follow another stage: {self}")

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Span if every stage is, else span-then-coordinate."""
        last = self.stages[-1].kind
        return last if len(self.stages) == 1 or last == "span" else f"span, then {last}"

    @property
    def vectors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Extra vectors of all stages."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.vectors))

    @property
    def memories(self) -> frozenset[str]:  # type: ignore[override]
        """Extra vectors a row, of all stages."""
        return frozenset().union(*(stage.memories for stage in self.stages))

    @property
    def shift_invariant(self) -> bool:  # type: ignore[override]
        """If every stage is."""
        return all(stage.shift_invariant for stage in self.stages)

    @property
    def permutation_equivariant(self) -> bool:  # type: ignore[override]
        """If every stage is."""
        return all(stage.permutation_equivariant for stage in self.stages)

    @property
    def accepts(self) -> frozenset[str]:
        """Extras of all stages."""
        return frozenset().union(*(stage.accepts for stage in self.stages))

    @property
    def made_for(self) -> int | None:
        """The largest f of its stages."""
        return max((stage.made_for for stage in self.stages if stage.made_for is not None), default=None)

    @property
    def min_senders(self) -> int:
        """The smallest n for which every stage gets rows enough."""
        n = 1
        while (error := self._shortage(n)) is not None:
            n += error.needed - error.given
            if n > 1_000_000:
                raise SpecError(f"{self} is valid for no n below a million")
        return n

    def check(self, n: int) -> None:
        """Every stage, for the rows that reach it."""
        error = self._shortage(n)
        if error is not None:
            raise NotEnoughSenders(str(self), self.min_senders, n, f": {error}" if error.given != n else "")

    def _shortage(self, n: int) -> NotEnoughSenders | None:
        for stage in self.stages:
            try:
                stage.check(n)
            except NotEnoughSenders as error:
                return error
            n = stage.out_rows(n)
        return None

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """Those of the last stage, as each pre-aggregator in front of it changes them."""
        sizes = [n]
        for stage in self.stages[:-1]:
            sizes.append(stage.out_rows(sizes[-1]))
        bounds = self.stages[-1].bounds(sizes[-1], f, d)
        for stage, size in reversed(list(zip(self.stages[:-1], sizes, strict=False))):
            assert isinstance(stage, PreAggregator)
            bounds = stage.improve(bounds, size, f)
        return bounds

    def out_rows(self, n: int) -> int:
        """Rows of the last stage."""
        for stage in self.stages:
            n = stage.out_rows(n)
        return n

    def shrunk(self, count: int) -> Self:
        """Every stage."""
        return replace(self, stages=tuple(stage.shrunk(count) for stage in self.stages))

    def without(self, rejected: tuple[int, ...], n: int) -> Self:
        """Every stage, without the rejected rows."""
        return replace(self, stages=tuple(stage.without(rejected, n) for stage in self.stages))

    def __str__(self) -> str:
        return " | ".join(map(str, self.stages))


_KEYWORDS: dict[Any, frozenset[str]] = {}  # reading signatures is slow, and every call asks


def keywords(cls: type[Operator], method: str) -> frozenset[str]:
    """Names of the keyword-only arguments of one method of an operator class, which are extras of a call."""
    function = getattr(cls, method, None)
    if function not in _KEYWORDS:
        arguments = inspect.signature(function).parameters.values() if function is not None else ()
        names = frozenset(argument.name for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY)
        _KEYWORDS[function] = names
    return _KEYWORDS[function]


@cache
def extras_of(cls: type[Operator]) -> frozenset[str]:
    """Names of the extras that an operator class takes: its vectors and the keyword-only arguments of its methods."""
    names = frozenset().union(*(keywords(cls, method) for method in ("weights", "finish", "columns", "produce")))
    own = frozenset({"own"}) if issubclass(cls, Attack) else frozenset()
    return frozenset(cls.vectors) | cls.memories | names | own


def gathered(like: Rows, answers: Sequence[Any]) -> Any:
    """Rows that several calls gave, at least one, as one answer in the kind of `like`."""
    return like.layout.restore_all([list(source) for source in Rows.of(list(answers)).sources])


def seeded(seed: int, name: str, round: int) -> torch.Generator:
    """The generator of one operator in one round: equal for equal (seed, name, round), else independent."""
    mixed = seed
    for word in (*name.encode(), round):
        mixed = (mixed * 6364136223846793005 + word + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)
