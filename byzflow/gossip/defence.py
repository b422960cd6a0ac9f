"""The robust rule of one node: what it makes of the vectors that came, and what it says of their senders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from byzflow import memory
from byzflow.attendance import copies_for, shrunk_for
from byzflow.engine.report import Aggregation
from byzflow.errors import NotEnoughSenders, RowsError, SpecError
from byzflow.gossip.effects import Heard, NodeId
from byzflow.graph.subtask import Pool, SubTask
from byzflow.operators import Operator
from byzflow.spec import parse_rule

Kind = tuple[int, torch.dtype, torch.device]
NOT_FINITE, NO_VECTOR = "NaN or Inf", "no vector of floating numbers"


@dataclass(frozen=True, eq=False)
class Record:
    """All that it takes to compute an aggregation again; see `byzflow.ledger`."""

    operator: str
    rows: Mapping[str, Tensor]
    """By place and sender, so that the order of the names is that of the rows."""
    extras: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One aggregation, by node."""

    value: Any
    """The result, a flat vector; None if no rule could be applied, see `problem`."""
    rule: str
    """The spec that ran, its f shrunk with those who are missing or malformed."""
    weights: Mapping[NodeId, float] = field(default_factory=dict)
    rejected: Mapping[NodeId, str] = field(default_factory=dict)
    missing: tuple[NodeId, ...] = ()
    problem: str = ""
    record: Record | None = field(default=None, repr=False, compare=False)
    """What it was made of, where that is to be written down."""


class Defence:
    """A rule with its memory. `spec` may leave f open, which `f` then fills.

    A vector of another shape, dtype or device than most, or with NaN or Inf, is rejected and named, and costs nobody
    else anything: n and f shrink with it. Silence never makes f smaller where a node has a vector of its own, which
    stands for the silent ones as far as the rule needs more rows; elsewhere see `byzflow.attendance.shrunk_for`.
    Raises SpecError for what is no aggregation.
    """

    def __init__(self, spec: str | Operator = "mean", f: int | None = None, audit: bool = True) -> None:
        self.operator = parse_rule(spec, f)
        self._bears = self.operator.declared if f is None else f
        self.audit = audit
        self.state: dict[str, Any] = {}
        self.recorded = False
        """If verdicts say what they were made of."""
        self._kind: Kind | None = None  # of the last result: later rounds have no vote on it
        self.sample_weights: Mapping[NodeId, float] = {}
        """How much each sender counts in a rule that takes it, such as by its samples; 1 where nothing is said."""

    @property
    def f(self) -> int:
        """Byzantine rows that it bears."""
        return self.operator.declared

    @property
    def needs_own(self) -> bool:
        """If the rule starts from one row, which in gossip must be the node's own: another's may be a liar's."""
        return not self.operator.permutation_equivariant

    def no_own(self, heard: Heard) -> Verdict:
        """Of a round in which the node has no such row."""
        why = f"{self.operator} starts from the node's own vector, and there is none"
        return Verdict(None, str(self.operator), missing=heard.missing, problem=why)

    def aggregate(
        self,
        heard: Heard,
        own: tuple[NodeId, Any] | None = None,
        weights: Mapping[NodeId, float] | None = None,
        expected: Any = None,
    ) -> Verdict:
        """The verdict on what was heard; `own`, where given, is the first row.

        `weights` go to a rule that takes mixing weights, where a silent neighbour's is left out. `expected` is a
        vector of the right shape and dtype; without it those of the last result, or else of most rows, count as right.
        """
        case = self._case(heard, own, weights, expected)
        try:
            return self._verdict(case, case.run(*case.call))
        except (NotEnoughSenders, RowsError, SpecError) as problem:
            return self._none(case, problem)

    async def aggregate_on(
        self,
        pool: Pool,
        heard: Heard,
        own: tuple[NodeId, Any] | None = None,
        weights: Mapping[NodeId, float] | None = None,
    ) -> Verdict:
        """The same, computed by a worker of the pool."""
        case = self._case(heard, own, weights, None)
        try:
            return self._verdict(case, await pool.run_subtask(SubTask(case.run, case.call, name=str(self.operator))))
        except (NotEnoughSenders, RowsError, SpecError) as problem:
            return self._none(case, problem)

    def _case(
        self, heard: Heard, own: tuple[NodeId, Any] | None, weights: Mapping[NodeId, float] | None, expected: Any
    ) -> _Case:
        given = ({own[0]: own[1]} if own is not None else {}) | dict(heard.values)
        right = own[1] if own is not None else expected
        rows, rejected = _alike(given, self._kind if right is None else _kind(right))
        silent, malformed, copies = len(heard.missing), len(rejected), 0
        if own is not None and own[0] in rows:
            if bool(rows[own[0]].isfinite().all()):
                copies = copies_for(self.operator, self._bears, len(rows), malformed, silent)
            elif not self.needs_own:  # else the rule says that its measure is broken
                del rows[own[0]]
                rejected[own[0]] = NOT_FINITE  # but no liar: f stays
            silent = 0
        senders = [*rows, *(copies * [own[0]] if own is not None else [])]
        extras = memory.extras_for(self.state, senders)
        if weights is not None and "weights" in self.operator.accepts:
            mixing = [weights.get(each, 0.0) for each in rows]
            mixing += copies * [0.0]  # the own row has the silent ones' weight
            extras["weights"] = torch.tensor(mixing, dtype=torch.float64)
        if self.sample_weights and "sample_weights" in self.operator.accepts:
            counts = [self.sample_weights.get(each, 1.0) for each in senders]
            extras["sample_weights"] = torch.tensor(counts, dtype=torch.float64)
        call = (self.operator, [rows[each] for each in senders], malformed, silent, self.audit, extras)
        return _Case(call, senders, rejected, heard.missing)

    def _verdict(self, case: _Case, result: Aggregation) -> Verdict:
        record = self._record(case) if self.recorded else None
        self.state = memory.by_node(result.state, case.senders, self.state)
        rejected = case.rejected | {case.senders[place]: NOT_FINITE for place in result.rejected}
        shares: dict[NodeId, float] = {}
        for sender, share in () if result.weights is None else zip(case.senders, result.weights.tolist(), strict=True):
            shares[sender] = shares.get(sender, 0.0) + share
        self._kind = _kind(result.value)
        return Verdict(result.value, result.operator, shares, rejected, case.missing, record=record)

    def _record(self, case: _Case) -> Record:
        operator, rows, rejected, silent, _, extras = case.call
        names = [f"{place:05d} {sender}" for place, sender in enumerate(case.senders)]
        spec = str(shrunk_for(operator, len(rows), rejected, silent))
        return Record(spec, dict(zip(names, rows, strict=True)), extras)

    def _none(self, case: _Case, problem: Exception) -> Verdict:
        return Verdict(None, str(self.operator), rejected=case.rejected, missing=case.missing, problem=str(problem))


def _run(
    operator: Operator, rows: list[Tensor], rejected: int, silent: int, audit: bool, extras: dict[str, Any]
) -> Aggregation:
    """Where the rule is computed, here or on a worker."""
    return shrunk_for(operator, len(rows), rejected, silent).run(rows, nonfinite="reject", audit=audit, **extras)


@dataclass(frozen=True)
class _Case:
    """One aggregation before it is computed."""

    call: tuple[Any, ...]
    senders: list[NodeId]
    rejected: dict[NodeId, str]
    missing: tuple[NodeId, ...]
    run: ClassVar[Callable[..., Aggregation]] = staticmethod(_run)


def _alike(given: Mapping[NodeId, Any], kind: Kind | None) -> tuple[dict[NodeId, Tensor], dict[NodeId, str]]:
    """The vectors that can be aggregated together, and why the others cannot."""
    vectors = {sender: value for sender, value in given.items() if is_vector(value)}
    rejected = {sender: NO_VECTOR for sender in given if sender not in vectors}
    if not vectors:
        return {}, rejected
    most = kind or Counter(map(_kind, vectors.values())).most_common(1)[0][0]
    for sender, value in vectors.items():
        if _kind(value) != most:
            rejected[sender] = f"{_told(_kind(value))}, not {_told(most)}"
    return {sender: value for sender, value in vectors.items() if sender not in rejected}, rejected


def is_vector(value: Any) -> bool:
    """If a rule can use it as a row: a dense tensor of one dimension, floating and not empty."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided
    return dense and value.ndim == 1 and value.is_floating_point() and value.numel() > 0


def fits(value: Any, like: Any) -> bool:
    """If it is a finite vector, and of the kind of `like`, where that is one."""
    alike = is_vector(value) and (not is_vector(like) or _kind(value) == _kind(like))
    return alike and bool(value.isfinite().all())


def _kind(value: Tensor) -> Kind:
    return value.numel(), value.dtype, value.device


def _told(kind: Kind) -> str:
    place = "" if kind[2].type == "cpu" else f" on {kind[2]}"
    return f"{kind[0]} numbers of {str(kind[1]).removeprefix('torch.')}{place}"
