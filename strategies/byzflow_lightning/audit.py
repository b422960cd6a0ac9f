"""What one robust reduction did to the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from byzflow import Aggregation, Operator

ABSENT = "no gradient, or a NaN loss"
NONFINITE = "NaN or Inf"


@dataclass(frozen=True)
class StepAudit:
    """Who moved the model in a step, by how much, and who was left out.

    `weights` has each rank's share in the result, 0 if it was left out; it is empty where that cannot be said or
    nothing was aggregated. `skipped` says why there is no result; it is empty if there is one.
    """

    operator: str
    """The rule as it was used, its f smaller by the ranks left out."""
    weights: tuple[float, ...] = ()
    rejected: Mapping[int, str] = field(default_factory=dict)
    """Rank -> why it was left out."""
    seconds: float = 0.0
    """What the reduction took, the waiting for slower ranks in it."""
    skipped: str = ""

    @classmethod
    def of(cls, result: Aggregation, absent: frozenset[int], seconds: float) -> StepAudit:
        """The audit of an aggregation in which some ranks had no gradient at all."""
        rejected = {rank: ABSENT if rank in absent else NONFINITE for rank in result.rejected}
        weights = () if result.weights is None else tuple(result.weights.tolist())
        return cls(result.operator, weights, rejected, seconds)

    @classmethod
    def failed(
        cls, operator: Operator, problem: Exception, finite: Tensor, absent: frozenset[int] = frozenset()
    ) -> StepAudit:
        """The audit of a step without a result; `finite` (n, 1) tells whose gradient was."""
        bad = (finite.flatten() == 0).nonzero().flatten().tolist()
        rejected = {rank: ABSENT if rank in absent else NONFINITE for rank in bad}
        return cls(str(operator), rejected=rejected, skipped=str(problem))

    def line(self) -> str:
        """For a log."""
        who = ", ".join(f"rank {rank}: {why}" for rank, why in sorted(self.rejected.items()))
        if self.skipped:
            return f"step skipped: {self.skipped}" + (f" ({who})" if who else "")
        return f"left out: {who}" if who else f"{self.operator} over all ranks"
