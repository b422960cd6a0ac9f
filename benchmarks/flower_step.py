"""A Flower server's step in a round: from the replies, as they lie encoded in memory, to the new model.

byzflow is `Robust(FedAvg(), spec)`, which also checks, decodes, audits and rewrites every reply; Flower's are its own
strategies. Both get the same replies, decode them inside the measurement, and pass through their own averaging.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.workloads import Workload

STRATEGIES = {
    "mean": ("FedAvg", {}),
    "median": ("FedMedian", {}),
    "trimmed_mean": ("FedTrimmedAvg", {"beta": "share"}),
    "krum": ("Krum", {"num_malicious_nodes": "f"}),
    "multi_krum": ("MultiKrum", {"num_malicious_nodes": "f", "num_nodes_to_select": "kept"}),
    "bulyan": ("Bulyan", {"num_malicious_nodes": "f"}),
}


class _Grid:
    """As much of a grid as choosing nodes needs."""

    def __init__(self, n: int) -> None:
        self.n = n

    def get_node_ids(self) -> list[int]:
        return list(range(1, self.n + 1))


def build(workload: Workload, contestant: str, rows: Sequence[Tensor]) -> tuple[Callable[[Any], Any], Any]:
    """The strategy's aggregate_train on fresh messages that share the encoded arrays; answers the model's vector."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import strategy as flowers
    from flwr.serverapp.strategy import FedAvg

    from byzflow_flower import Robust
    from byzflow_flower.compat import become_server

    become_server()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    names = [f"layer{k}" for k in range(workload.leaves)]

    def encoded(row: Any) -> ArrayRecord:
        return ArrayRecord({n: Array(leaf) for n, leaf in zip(names, np.array_split(row, len(names)), strict=True)})

    if contestant == "byzflow":
        strategy: Any = Robust(FedAvg(), workload.spec, f=workload.f)
    else:
        name, options = STRATEGIES[workload.name]
        known = {"f": workload.f, "share": (workload.f + 0.01) / workload.n, "kept": workload.n - workload.f - 2}
        strategy = getattr(flowers, name)(**{key: known[value] for key, value in options.items()})
    start = encoded(np.zeros(workload.d, np.float32))
    asked = list(strategy.configure_train(1, start, ConfigRecord(), _Grid(workload.n)))
    records = [encoded(row.numpy()) for row in rows]

    def run(given: list[ArrayRecord]) -> Any:
        metrics = MetricRecord({"num-examples": 1})
        replies = [
            Message(RecordDict({"arrays": ArrayRecord(dict(record)), "metrics": metrics}), reply_to=message)
            for record, message in zip(given, asked, strict=True)
        ]
        arrays, _ = strategy.aggregate_train(1, replies)
        return [arrays[name].numpy() for name in names]

    return lambda given: np.concatenate(run(given)), records
