"""What happened in a round of gossip, and how far the nodes' models are from one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

import byzflow
from byzflow_flower.audit import Rejection
from byzflow_flower.buffers import median_buffers
from byzflow_flower.mixing import Model
from byzflow_flower.sent_model import SentModel

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True)
class GossipRound:
    """What happened in one round.

    `rejected` are the nodes whose replies the server could not relay, or not keep: errors, silence, no model, one
    larger than the initial model, one that cannot be read. `dropped` tells for each node which neighbours it dropped
    and why: claims of that node. `kept` tells why a node kept its own model. `consensus_distance` is the median, over
    the nodes, of the distance between a node's model and the median of all models, coordinate by coordinate: a
    minority of liars cannot move it beyond what honest nodes have.
    """

    server_round: int
    rejected: tuple[Rejection, ...]
    dropped: Mapping[int, Sequence[Rejection]]
    kept: Mapping[int, str]
    consensus_distance: float

    def lines(self) -> list[str]:
        """For a log."""
        told = [f"round {self.server_round}: consensus distance {self.consensus_distance:.4g}"]
        told += [f"node {each.node_id} rejected: {each.reason}" for each in self.rejected]
        for node, dropped in self.dropped.items():
            told += [f"node {node} dropped its neighbour {each.node_id}: {each.reason}" for each in dropped]
        return told + [f"node {node} kept its own model: {why}" for node, why in self.kept.items()]


def consensus(initial: SentModel, models: Sequence[Model]) -> tuple[ArrayRecord, float]:
    """The median of all models, coordinate by coordinate, and the median of their distances from it."""
    centre = byzflow.aggregate("median", [each.update for each in models])
    squares = [
        sum(float(np.square(np.subtract(each.update[k], centre[k], dtype=np.float64)).sum()) for k in centre)
        for each in models
    ]
    return initial.changed_by(centre, median_buffers(initial, models)), math.sqrt(np.median(squares))


def evaluated(evaluate: Evaluate, server_round: int, models: Iterable[ArrayRecord]) -> MetricRecord | None:
    """The median over the models of each metric that is one number, NaN and Inf aside; None without a metric."""
    values: dict[str, list[float]] = {}
    for model in models:
        for name, value in (evaluate(server_round, model) or {}).items():
            if not isinstance(value, list) and math.isfinite(value):
                values.setdefault(name, []).append(value)
    return MetricRecord({name: float(np.median(each)) for name, each in values.items()}) if values else None
