"""What came of a run: how good the model is, who moved it, and who was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from byzflow.federation.report import History
from byzflow.gossip.effects import NodeId


@dataclass(frozen=True)
class Summary:
    """Of all rounds of a run."""

    rounds: int
    metrics: dict[str, float]
    """The last of each."""
    best: dict[str, float]
    """The highest accuracy and the least of all others."""
    seconds_per_round: float
    honest_weight: float | None
    """The share that honest nodes have in the aggregates, a mean over rounds; None where no rule told weights."""
    byzantine_weight: float | None
    heaviest: tuple[NodeId, float] | None
    """The node with the largest mean weight, and that weight."""
    rejected: dict[NodeId, int]
    """In how many rounds a node's vector did not count."""
    reasons: dict[NodeId, str]
    """Why, the last time."""
    missing: dict[NodeId, int]
    errors: dict[NodeId, int]
    digests_equal: bool | None
    """If all nodes had the same model after every round; None where that is not so by design."""
    idle_rounds: int
    """Rounds without a step, see `problem`."""
    problem: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        final = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items()) or "nobody evaluated"
        lines = [f"{self.rounds} rounds, {self.seconds_per_round:.3g} s each: {final}"]
        if self.honest_weight is not None and self.byzantine_weight is not None:
            heaviest = (
                "" if self.heaviest is None else f"; heaviest: node {self.heaviest[0]} with {self.heaviest[1]:.3f}"
            )
            lines.append(f"weight: honest {self.honest_weight:.3f}, Byzantine {self.byzantine_weight:.3f}{heaviest}")
        for what, counts in (("rejected", self.rejected), ("missing", self.missing), ("failed", self.errors)):
            if counts:
                lines.append(f"{what}: " + ", ".join(
                    f"{node} {count}x" + (f" ({self.reasons[node]})" if what == "rejected" else "")
                    for node, count in counts.items()
                ))  # fmt: skip
        if self.digests_equal is not None:
            lines.append("models equal after every round" if self.digests_equal else "models differed in some round")
        if self.idle_rounds:
            lines.append(f"{self.idle_rounds} rounds without a step: {self.problem}")
        return lines


def summary(history: History, byzantine: Collection[NodeId] = ()) -> Summary:
    """The summary of a run in which these nodes lie."""
    rounds = list(history)
    names = dict.fromkeys(name for report in rounds for name in report.metrics)
    series = {name: history.metric(name) for name in names}
    totals: dict[NodeId, list[float]] = {}
    for report in rounds:
        whole = sum(report.weights.values())
        for node, weight in report.weights.items():
            totals.setdefault(node, []).append(weight / whole if whole else 0.0)
    told = sum(bool(report.weights) for report in rounds)
    shares = {node: sum(each) / told for node, each in totals.items()}
    digests = [report.digests for report in rounds if report.digests]
    problems = [report.problem for report in rounds if report.problem]
    return Summary(
        rounds=len(rounds),
        metrics={name: each[-1] for name, each in series.items()},
        best={name: max(each) if name == "accuracy" else min(each) for name, each in series.items()},
        seconds_per_round=fmean(report.seconds for report in rounds) if rounds else 0.0,
        honest_weight=sum(share for node, share in shares.items() if node not in byzantine) if shares else None,
        byzantine_weight=sum(share for node, share in shares.items() if node in byzantine) if shares else None,
        heaviest=max(shares.items(), key=lambda item: item[1]) if shares else None,
        rejected=dict(Counter(node for report in rounds for node in report.rejected)),
        reasons={node: why for report in rounds for node, why in report.rejected.items()},
        missing=dict(Counter(node for report in rounds for node in report.missing)),
        errors=dict(Counter(node for report in rounds for node in report.errors)),
        digests_equal=all(len(each) == 1 for each in digests) if digests else None,
        idle_rounds=len(problems),
        problem=problems[-1] if problems else "",
    )
