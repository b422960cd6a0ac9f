"""What an aggregation tells besides its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Aggregation:
    """The value of one robust step and the audit of the participants."""

    value: Any
    """The result, in the kind, dtype and device of the rows."""
    operator: str
    """The spec that ran, after f shrank with the rejected rows."""
    n: int
    """Rows that took part."""
    weights: Tensor | None = None
    """(n,) float64: how much of each input row is in the result (0 for a rejected row; None if not asked for).
    For a column rule, the share over a sample of coordinates."""
    distances: Tensor | None = None
    """(n,) float64: how far each input row is from the result (inf for a rejected row), where the Gram tells it: for a
    chain of weights alone. Else None; `byzflow.engine.audit.distances` measures it in one more pass."""
    rejected: tuple[int, ...] = ()
    """Rows that held NaN or Inf."""
    bound_exceeded: bool = False
    """More rows were rejected than the f that was declared."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Extras for the next call of the same operator; empty for a rule without state."""
