"""The robust rule of one node: what it makes of the vectors that came, and what it says of their senders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from byzflow import memory
from byzflow.attendance import shrunk_for
from byzflow.errors import NotEnoughSenders, RowsError, SpecError
from byzflow.gossip.effects import Heard, NodeId
from byzflow.operators import Attack, Operator
from byzflow.spec import parse


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


class Defence:
    """A rule with its memory. `spec` may leave f open, which `f` then fills.

    A vector of another shape or dtype than most, or with NaN or Inf, is rejected and named, and costs nobody else
    anything: n and f shrink with it. Raises SpecError for what is no aggregation.
    """

    def __init__(self, spec: str | Operator = "mean", f: int | None = None, audit: bool = True) -> None:
        self.operator = parse(spec, f=f)
        if isinstance(self.operator, Attack) or self.operator.out_rows(1000) != 1:
            raise SpecError(f"{self.operator} is no aggregation; end the spec with a rule, such as '| trimmed_mean'")
        self.audit = audit
        self.state: dict[str, Any] = {}

    @property
    def f(self) -> int:
        """Byzantine rows that it bears."""
        return self.operator.declared

    def aggregate(
        self,
        heard: Heard,
        own: tuple[NodeId, Any] | None = None,
        weights: Mapping[NodeId, float] | None = None,
        expected: Any = None,
    ) -> Verdict:
        """The verdict on what was heard; `own`, where given, is the first row.

        `weights` go to a rule that takes mixing weights, where a silent neighbour's is left out. `expected` is a
        vector of the right shape and dtype; without it those of most rows count as right.
        """
        given = ({own[0]: own[1]} if own is not None else {}) | dict(heard.values)
        rows, rejected = _alike(given, own[1] if own is not None else expected)
        senders = list(rows)
        try:
            operator = shrunk_for(self.operator, len(rows), len(rejected), len(heard.missing))
            extras = memory.extras_for(self.state, senders)
            if weights is not None and "weights" in operator.accepts:
                extras["weights"] = torch.tensor([weights.get(each, 0.0) for each in senders], dtype=torch.float64)
            result = operator.run(list(rows.values()), nonfinite="reject", audit=self.audit, **extras)
        except (NotEnoughSenders, RowsError, SpecError) as problem:
            return Verdict(None, str(self.operator), rejected=rejected, missing=heard.missing, problem=str(problem))
        self.state = memory.by_node(result.state, senders, self.state)
        rejected |= {senders[place]: "NaN or Inf" for place in result.rejected}
        shares = {} if result.weights is None else dict(zip(senders, result.weights.tolist(), strict=True))
        return Verdict(result.value, result.operator, shares, rejected, heard.missing)


def _alike(given: Mapping[NodeId, Any], right: Any) -> tuple[dict[NodeId, Tensor], dict[NodeId, str]]:
    """The vectors that can be aggregated together, and why the others cannot."""
    vectors = {sender: value for sender, value in given.items() if _is_vector(value)}
    rejected = {sender: "no vector of floating numbers" for sender in given if sender not in vectors}
    if not vectors:
        return {}, rejected
    most = _kind(right) if right is not None else Counter(map(_kind, vectors.values())).most_common(1)[0][0]
    for sender, value in vectors.items():
        if _kind(value) != most:
            rejected[sender] = f"{_told(_kind(value))}, not {_told(most)}"
    return {sender: value for sender, value in vectors.items() if sender not in rejected}, rejected


def _is_vector(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and value.is_floating_point() and value.numel() > 0


def _kind(value: Tensor) -> tuple[int, torch.dtype]:
    return value.numel(), value.dtype


def _told(kind: tuple[int, torch.dtype]) -> str:
    return f"{kind[0]} numbers of {str(kind[1]).removeprefix('torch.')}"
