"""What all rounds of a training say of each node, as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median_low
from typing import Any

from byzflow_flower.audit import RoundAudit


@dataclass(frozen=True)
class NodeAudit:
    """One node over the rounds of a run.

    `share` is its mean weight times the number of replies: 1 is an equal share. `distance` is the mean of its distance
    to the result divided by the round's median. Both are None if no reply counted, or where a rule does not tell it.
    """

    node: str
    suspicion: float | None
    counted: int
    share: float | None
    distance: float | None
    malformed: int
    missing: int
    excluded: bool
    reason: str
    """Of its last rejection."""


def by_node(rounds: Sequence[RoundAudit]) -> list[NodeAudit]:
    """Every node of a run, the most suspect first."""
    shares: dict[int, list[float]] = {}
    far: dict[int, list[float]] = {}
    rejections: dict[int, list[tuple[bool, str]]] = {}
    counted: dict[int, int] = {}
    for audit in rounds:
        for node in audit.weights.keys() | audit.distances.keys():
            counted[node] = counted.get(node, 0) + 1
        for node, share in shares_in(audit).items():
            shares.setdefault(node, []).append(share)
        for node, ratio in ratios_in(audit).items():
            far.setdefault(node, []).append(ratio)
        for each in audit.rejected:
            rejections.setdefault(each.node_id, []).append((each.malformed, each.reason))
    last = rounds[-1]
    nodes = counted.keys() | rejections.keys() | last.suspicion.keys() | set(last.excluded)
    found = [
        NodeAudit(
            node=str(node),
            suspicion=last.suspicion.get(node),
            counted=counted.get(node, 0),
            share=_mean(shares.get(node, [])),
            distance=_mean(far.get(node, [])),
            malformed=sum(malformed for malformed, _ in rejections.get(node, [])),
            missing=sum(not malformed for malformed, _ in rejections.get(node, [])),
            excluded=node in last.excluded,
            reason=rejections[node][-1][1] if node in rejections else "",
        )
        for node in sorted(nodes)
    ]
    return sorted(found, key=lambda each: -1.0 if each.suspicion is None else each.suspicion, reverse=True)


def shares_in(audit: RoundAudit) -> dict[int, float]:
    """Weight times the number of replies, of each node that counted."""
    return {node: weight * len(audit.weights) for node, weight in audit.weights.items() if math.isfinite(weight)}


def ratios_in(audit: RoundAudit) -> dict[int, float]:
    """Distance to the result, by the median of the round; nothing where that is 0."""
    known = {node: distance for node, distance in audit.distances.items() if math.isfinite(distance)}
    middle = median_low(known.values()) if known else 0.0
    return {node: distance / middle for node, distance in known.items()} if middle > 0 else {}


def as_dict(rounds: Sequence[RoundAudit], nodes: Sequence[NodeAudit]) -> dict[str, Any]:
    """For JSON."""
    kept = [{"round": audit.server_round, "why": audit.kept_model} for audit in rounds if audit.kept_model]
    return {
        "rounds": len(rounds),
        "operator": rounds[-1].operator,
        "kept_model": kept,
        "nodes": list(map(asdict, nodes)),
    }


def show(rounds: Sequence[RoundAudit], nodes: Sequence[NodeAudit], runs: int, picture: Path | None) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(
        title=f"{len(rounds)} rounds, {len(nodes)} nodes, {rounds[-1].operator}",
        title_justify="left",
        box=None,
        header_style="bold",
        padding=(0, 2, 0, 0),
    )
    table.add_column("node", style="cyan", no_wrap=True)
    for heading in ("suspicion", "share", "distance", "counted", "malformed", "missing"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in nodes:
        score = each.suspicion or 0.0
        style = "red" if score >= 0.5 else "yellow" if score >= 0.25 else ""
        counts = (_count(each.counted), _count(each.malformed), _count(each.missing))
        numbers = (_number(each.share), _number(each.distance), *counts)
        table.add_row(each.node, Text(_number(each.suspicion), style=style), *numbers)
    console.print(table)
    console.print("\nshare: weight x replies, 1 is equal; distance: to the result, by the median\n", highlight=False)
    for each in nodes:
        if each.reason or each.excluded:
            told = f"node {each.node}: {'excluded; ' * each.excluded}last rejected: {each.reason or '-'}"
            console.print(Text(told), soft_wrap=True)
    for audit in rounds:
        if audit.kept_model:
            console.print(Text(f"round {audit.server_round}: the model was kept, {audit.kept_model}"))
    if runs > 1:
        console.print(f"the file holds {runs} runs; --run N shows another", highlight=False)
    if picture is not None:
        console.print(Text(f"picture: {picture}"))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 1000 else f"{value:.1e}"


def _count(value: int) -> str:
    return str(value) if value else "-"
