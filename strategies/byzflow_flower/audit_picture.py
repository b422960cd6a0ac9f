"""A training's audit as a picture, nodes by rounds: what each node weighed, how far off it was, how suspect it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from byzflow.errors import ByzflowError
from byzflow_flower.audit import RoundAudit
from byzflow_flower.audit_table import NodeAudit, ratios_in, shares_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, NOBODY, MALFORMED, SILENT = "#222222", "#666666", "#f4f4f4", "#b2182b", "#777777"
MOST_NODES = 60  # the most suspect ones; more rows could not be read

# Inches: margins, and what a node and a round take.
TOP, BOTTOM, RIGHT, GAP, BAR, SCALE = 0.95, 1.0, 0.3, 0.25, 1.3, 0.11
ROW, LETTER = 0.21, 0.082


def draw(rounds: Sequence[RoundAudit], nodes: Sequence[NodeAudit], path: Path) -> None:
    """Save the picture, in the format that the name says. Raises ByzflowError without matplotlib, or a bad name."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ByzflowError("--plot needs matplotlib: pip install 'byzflow[plots]'") from None
    shown = list(nodes[:MOST_NODES])
    left = LETTER * max(len(each.node) for each in shown) + 0.45
    panel = min(6.0, max(2.6, 0.16 * len(rounds)))
    tall = max(1.2, ROW * len(shown))
    width, height = left + 2 * panel + BAR + 2 * GAP + RIGHT, TOP + tall + BOTTOM
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")

    def place(x: float, wide: float) -> Axes:
        return figure.add_axes((x / width, BOTTOM / height, wide / width, tall / height))

    weights, far, bars = place(left, panel), place(left + panel + GAP, panel), place(width - RIGHT - BAR, BAR)
    _heat(weights, rounds, shown, [shares_in(each) for each in rounds], "PuOr", (0, 1, 2))
    _heat(far, rounds, shown, [ratios_in(each) for each in rounds], "RdYlBu_r", (0, 1, 2))
    _bars(bars, shown)
    weights.set_yticks(range(len(shown)), [each.node for each in shown], fontsize=8, color=INK)
    weights.set_ylabel("node", fontsize=9, color=INK)
    weights.set_title("weight / equal share", fontsize=10, color=INK, pad=6)
    far.set_title("distance to the result / median", fontsize=10, color=INK, pad=6)
    for axes, x in ((weights, left), (far, left + panel + GAP)):
        bar = figure.add_axes((x / width, 0.3 / height, 0.55 * panel / width, SCALE / height))
        figure.colorbar(axes.images[0], cax=bar, orientation="horizontal", ticks=[0, 1, 2])
        bar.set_xticklabels(["0", "1", "2 or more"])
        bar.tick_params(labelsize=7.5, colors=SOFT, length=2)
        bar.spines[:].set_visible(False)
    _words(figure, rounds, len(shown), len(nodes), width, height)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ByzflowError(f"cannot save the picture {path}: {error}") from None


def _words(figure: Figure, rounds: Sequence[RoundAudit], shown: int, nodes: int, width: float, height: float) -> None:
    which = f"{nodes} nodes" if shown == nodes else f"the {shown} most suspect of {nodes} nodes"
    text = f"{len(rounds)} rounds, {which}, {rounds[-1].operator}"
    figure.text(
        0.2 / width, 1 - 0.24 / height, "Who moved the model", fontsize=13, fontweight="bold", color=INK, va="center"
    )
    figure.text(0.2 / width, 1 - 0.5 / height, text, fontsize=9, color=SOFT, va="center")
    x = 1 - (RIGHT + BAR) / width
    for line, (mark, colour, meaning) in enumerate(
        (("×", MALFORMED, "malformed"), ("·", SILENT, "error or silence"), ("–", SILENT, "excluded"))
    ):
        y = (0.52 - 0.17 * line) / height
        figure.text(x, y, mark, fontsize=10, fontweight="bold", color=colour, ha="center", va="center")
        figure.text(x + 0.12 / width, y, meaning, fontsize=8, color=SOFT, va="center")


def _heat(
    axes: Axes,
    rounds: Sequence[RoundAudit],
    nodes: Sequence[NodeAudit],
    values: Sequence[dict[int, float]],
    colours: str,
    scale: tuple[float, float, float],
) -> None:
    """A cell a node and round; marks where a reply did not count."""
    from matplotlib import colormaps

    table = [[column.get(int(each.node), math.nan) for column in values] for each in nodes]
    low, _, high = scale
    axes.imshow(table, cmap=colormaps[colours].with_extremes(bad=NOBODY), vmin=low, vmax=high, aspect="auto")
    rows = {int(each.node): row for row, each in enumerate(nodes)}
    for column, audit in enumerate(rounds):
        heard = audit.weights.keys() | audit.distances.keys()
        rejected = {each.node_id: each.malformed for each in audit.rejected if each.node_id not in heard}
        for node, malformed in rejected.items():
            if node in rows:
                mark, colour = ("×", MALFORMED) if malformed else ("·", SILENT)
                axes.text(
                    column, rows[node], mark, color=colour, fontsize=9, fontweight="bold", ha="center", va="center"
                )
        for node in audit.excluded:
            if node in rows and node not in rejected and node not in heard:
                axes.text(column, rows[node], "–", color=SILENT, fontsize=8, ha="center", va="center")
    for edge in range(1, len(nodes)):
        axes.axhline(edge - 0.5, color="white", linewidth=0.8)
    if len(rounds) <= 60:
        for edge in range(1, len(rounds)):
            axes.axvline(edge - 0.5, color="white", linewidth=0.4)
    step = max(1, math.ceil(len(rounds) / 10))
    ticks = range(0, len(rounds), step)
    axes.set_xticks(ticks, [str(rounds[tick].server_round) for tick in ticks], fontsize=8, color=INK)
    axes.set_xlabel("round", fontsize=9, color=INK, labelpad=2)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _bars(axes: Axes, nodes: Sequence[NodeAudit]) -> None:
    """The suspicion after the last round."""
    scores = [each.suspicion or 0.0 for each in nodes]
    colours = ["#b2182b" if score >= 0.5 else "#ef8a62" if score >= 0.25 else "#bbbbbb" for score in scores]
    axes.barh(range(len(nodes)), scores, color=colours, height=0.7)
    for row, (each, score) in enumerate(zip(nodes, scores, strict=True)):
        text = "-" if each.suspicion is None else f"{score:.2f}"
        inside = score > 0.7
        axes.text(
            score - 0.04 if inside else score + 0.04,
            row,
            text,
            fontsize=7.5,
            color="white" if inside else SOFT,
            ha="right" if inside else "left",
            va="center",
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(nodes) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=8, color=INK)
    axes.tick_params(length=2, colors=SOFT)
    axes.set_title("suspicion", fontsize=10, color=INK, pad=6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#888888")
