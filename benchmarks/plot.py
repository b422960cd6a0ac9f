"""Time by d and by n on logarithmic axes, with the slope of each line fitted where the work outweighs the start."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

LARGE = {"growth-d": 100_000, "growth-n": 32}  # the slope is fitted from here on
STYLES = {"byzflow": "-", "byzfl": ":", "byzpy": "--", "flower": "-.", "read": "-", "gemm float32": "-"}
GREY = {"read": "0.6", "gemm float32": "0.8"}
Lines = dict[tuple[str, str], list[tuple[float, float]]]


def lines(record: dict[str, Any], group: str) -> Lines:
    """(rule, contestant) -> (d or n, seconds), of the contestants that ran."""
    axis = group[-1]
    found: Lines = defaultdict(list)
    for workload in record["workloads"]:
        if workload["group"] != group:
            continue
        for name, result in workload["contestants"].items():
            if result.get("median") and name in STYLES:
                rule = "" if name in GREY else workload["name"]
                found[rule, name].append((workload[axis], result["median"]))
    # the yardsticks are measured beside every rule: their median at each point
    for key in [key for key in found if not key[0]]:
        by_x = defaultdict(list)
        for x, seconds in found[key]:
            by_x[x].append(seconds)
        found[key] = [(x, float(np.median(each))) for x, each in sorted(by_x.items())]
    return {key: sorted(points) for key, points in found.items()}


def slope(points: list[tuple[float, float]], large: float) -> float | None:
    """The exponent of the growth, by least squares of the logarithms; None for fewer than two large points."""
    logs = np.log([point for point in points if point[0] >= large])
    if len(logs) < 2:
        return None
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def draw(record: dict[str, Any], file: Path) -> None:
    """The picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(13, 8), layout="constrained")
    for panel, group in zip(panels, LARGE, strict=True):
        found = lines(record, group)
        rules = list(dict.fromkeys(rule for rule, _ in found if rule))
        for (rule, name), points in found.items():
            exponent = slope(points, LARGE[group])
            label = " ".join(filter(None, (name, rule))) + (f": {exponent:.2f}" if exponent is not None else "")
            colour = GREY[name] if name in GREY else f"C{rules.index(rule)}"
            x, y = zip(*points, strict=True)
            panel.loglog(x, [1e3 * each for each in y], STYLES[name], color=colour, marker=".", label=label)
        axis = group[-1]
        other = next((w for w in record["workloads"] if w["group"] == group), None)
        if other is not None:
            fixed = f"n = {other['n']}" if axis == "d" else f"d = {other['d']:,}"
            panel.set_title(f"time by {axis}, {fixed}")
        panel.set_xlabel(axis)
        panel.set_ylabel("milliseconds")
        panel.grid(alpha=0.3, which="both")
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "ncol": 3, "handlelength": 3}
        panel.legend(fontsize=7, title=f"slope from {axis} = {LARGE[group]:,}", title_fontsize=7, **below)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
