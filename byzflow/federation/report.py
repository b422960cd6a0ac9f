"""What a round of a federation was like, and all rounds so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from byzflow.gossip.effects import NodeId


@dataclass(frozen=True)
class RoundReport:
    """One round. Where each node aggregates for itself, weights are means over the nodes."""

    round: int
    seconds: float
    connected: tuple[NodeId, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Medians over the nodes that evaluated."""
    weights: Mapping[NodeId, float] = field(default_factory=dict)
    """How much each sender moved the model."""
    rejected: Mapping[NodeId, str] = field(default_factory=dict)
    """Whose vectors did not count, and why."""
    missing: tuple[NodeId, ...] = ()
    """Who did not speak in time."""
    errors: Mapping[NodeId, str] = field(default_factory=dict)
    """What nodes' own code raised."""
    digests: Mapping[str, tuple[NodeId, ...]] = field(default_factory=dict)
    """Which nodes have which model, where all should have the same: one entry if so."""
    events: Mapping[NodeId, str] = field(default_factory=dict)
    """Who was restarted, lost, added or removed, and why."""
    problem: str = ""
    """Why no step was taken."""
    absent: Mapping[NodeId, str] = field(default_factory=dict)
    """Why those who are missing are, where it is known: not connected, silent, refused, and since when."""
    refused: Mapping[NodeId, Mapping[str, int]] = field(default_factory=dict)
    """What was refused of whom in this round, by reason."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def line(self) -> str:
        """The round in one line."""
        parts = [f"round {self.round + 1}", *(f"{name} {value:.4g}" for name, value in self.metrics.items())]
        parts.append(f"{len(self.connected)} connected")
        parts += [f"{who} rejected: {why}" for who, why in self.rejected.items()]
        parts += [f"{who} failed: {why}" for who, why in self.errors.items()]
        parts += [f"{who} {what}" for who, what in self.events.items()]
        if self.missing:
            told = (f"{who} ({self.absent[who]})" if who in self.absent else f"{who}" for who in self.missing)
            parts.append(f"missing {', '.join(told)}")
        if len(self.digests) > 1:
            parts.append("models differ")
        if self.problem:
            parts.append(self.problem)
        return " | ".join(parts)


class Sink(Protocol):
    """Takes each round's report, such as to show it or to write it down."""

    def __call__(self, report: RoundReport) -> None:
        """Called once a round, in the order of the rounds; an error of a sink ends the run."""


class History:
    """The reports of all rounds, oldest first."""

    def __init__(self) -> None:
        self.rounds: list[RoundReport] = []

    def __len__(self) -> int:
        return len(self.rounds)

    def __iter__(self) -> Iterator[RoundReport]:
        return iter(self.rounds)

    def __getitem__(self, round: int) -> RoundReport:
        return self.rounds[round]

    def metric(self, name: str) -> list[float]:
        """One metric over the rounds that have it."""
        return [report.metrics[name] for report in self.rounds if name in report.metrics]


Evaluate = Callable[[int], Mapping[str, float]]
