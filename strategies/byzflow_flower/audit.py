"""Who moved the model in a round, by how much, and who was not heard. Plain data; audit_file.py writes and reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

SHOWN_NODES = 24  # in the log; the record holds them all
NODES_A_LINE = 4
LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class Rejection:
    """A node whose reply did not count, and why.

    `malformed` is true if no honest client sends such a reply: one of the f is found. It is false for errors and
    silence, since honest clients crash and are slow too, and for replies that nobody asked for. `by_comparison` is
    true if only the other replies show that it is malformed: whoever sends those has a say in it.
    """

    node_id: int
    reason: str
    malformed: bool = True
    by_comparison: bool = False

    def __post_init__(self) -> None:
        """A reason may quote the client: make it one printable line of bounded length."""
        characters = (c if c.isprintable() or c.isspace() else "?" for c in self.reason[:LONGEST_REASON])
        object.__setattr__(self, "reason", " ".join("".join(characters).split()))


@dataclass(frozen=True)
class RoundAudit:
    """What happened to the replies of one round.

    `weights` gives each node whose reply counted its share in the result (they sum to 1 for rules that average; it is
    empty for an evaluation, where medians are taken, and for the few rules of which shares cannot be told), and
    `distances` how far its update is from the result. `suspicion` is the running score of every node heard so far, 0
    to 1 (see `Standing`), and `excluded` lists those that are asked no more. `operator` is the rule as it was used,
    its f made smaller by the rejected. `kept_model` says why nothing was aggregated; it is empty if something was.
    """

    server_round: int
    operator: str
    weights: Mapping[int, float]
    rejected: tuple[Rejection, ...] = ()
    kept_model: str = ""
    distances: Mapping[int, float] = field(default_factory=dict)
    suspicion: Mapping[int, float] = field(default_factory=dict)
    excluded: tuple[int, ...] = ()
    step: str = "train"

    def metrics(self) -> dict[str, int | float | list[int] | list[float]]:
        """For a MetricRecord. Node ids are in the names, being too large for Flower's signed integers."""
        return {
            **{f"robust-weight/{node}": weight for node, weight in self.weights.items()},
            **{f"robust-distance/{node}": distance for node, distance in self.distances.items()},
            **{f"robust-suspicion/{node}": score for node, score in self.suspicion.items()},
            **{f"robust-rejected/{each.node_id}": 1 for each in self.rejected},
            **{f"robust-excluded/{node}": 1 for node in self.excluded},
        }

    def lines(self) -> list[str]:
        """For a log: what was used, each node's weight, each rejected node with its reason, who is excluded."""
        counted = self.weights or self.distances
        used = f"{self.operator} over {len(counted)} replies"
        told = [f"round {self.server_round}: " + (f"model kept, {self.kept_model}" if self.kept_model else used)]
        shown = sorted(self.weights.items(), key=lambda item: item[1])
        if len(shown) > SHOWN_NODES:
            half = SHOWN_NODES // 2
            told.append(f"the {half} lowest and the {half} highest weights of {len(shown)}:")
            shown = shown[:half] + shown[-half:]
        for start in range(0, len(shown), NODES_A_LINE):
            told.append(", ".join(f"node {n} weighs {w:.4f}" for n, w in shown[start : start + NODES_A_LINE]))
        told += [f"node {each.node_id} rejected: {each.reason}" for each in self.rejected]
        return told + [f"node {node} is excluded" for node in self.excluded]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: node ids as strings (they have 64 bits), numbers that are not finite as None."""
        nodes: dict[str, dict[str, float | None]] = {}
        for name, values in (("weight", self.weights), ("distance", self.distances), ("suspicion", self.suspicion)):
            for node, value in values.items():
                nodes.setdefault(str(node), {})[name] = value if math.isfinite(value) else None
        return {
            "step": self.step,
            "round": self.server_round,
            "operator": self.operator,
            "kept_model": self.kept_model,
            "nodes": nodes,
            "rejected": [
                {
                    "node": str(each.node_id),
                    "reason": each.reason,
                    "malformed": each.malformed,
                    "by_comparison": each.by_comparison,
                }
                for each in self.rejected
            ],
            "excluded": [str(node) for node in self.excluded],
        }

    @classmethod
    def of_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `as_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""

        def each(name: str) -> dict[int, float]:
            found = {int(node): values[name] for node, values in data["nodes"].items() if name in values}
            return {node: math.nan if value is None else float(value) for node, value in found.items()}

        rejected = tuple(
            Rejection(int(r["node"]), str(r["reason"]), bool(r["malformed"]), bool(r["by_comparison"]))
            for r in data["rejected"]
        )
        return cls(
            server_round=int(data["round"]),
            operator=str(data["operator"]),
            weights=each("weight"),
            rejected=rejected,
            kept_model=str(data["kept_model"]),
            distances=each("distance"),
            suspicion=each("suspicion"),
            excluded=tuple(int(node) for node in data["excluded"]),
            step=str(data["step"]),
        )
