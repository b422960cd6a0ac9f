"""A run as a terminal shows it while it lasts: rounds, curves, and a line for each node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from byzflow.federation.federation import Federation
from byzflow.federation.member import Member
from byzflow.federation.report import RoundReport

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # characters of a curve
MOST = 24  # nodes that are shown: those with something to tell before the others


def live_view(federation: Federation, rounds: int, title: str) -> RenderableType:
    """The state after the rounds so far, of so many in all."""
    history = federation.history
    done = len(history)
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(title, "bold"),
        ProgressBar(rounds, done, width=30, complete_style="cyan", finished_style="green"),
        Text(f"round {done}/{rounds}", "cyan"),
        Text(f"{fmean(report.seconds for report in history):.3g} s a round" if done else "", "dim"),
    )
    curves = Table.grid(padding=(0, 1))
    for name in dict.fromkeys(name for report in history for name in report.metrics):
        values = history.metric(name)
        curves.add_row(Text(name, "bold"), Text(curve(values), "green"), Text(f"{values[-1]:.4g}"))
    return Group(head, curves, Text(), nodes(federation, history[-1] if done else None))


def nodes(federation: Federation, report: RoundReport | None) -> Table:
    """Who is connected, who was rejected or missing and why, and how much each moved the model."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("node", "role", "state", "weight", "", "refused"):
        table.add_column(name, justify="right" if name in ("weight", "refused") else "left", no_wrap=True)
    table.add_column("why", overflow="ellipsis", no_wrap=True)
    told = [(member, *state(member, report)) for member in federation.members.values()]
    told.sort(key=lambda each: each[1] == "connected")  # stable: those with something to tell come first
    top = max(report.weights.values(), default=0.0) if report else 0.0
    for member, word, why in told[:MOST]:
        weight = report.weights.get(member.id) if report else None
        refused = sum(member.id in each.rejected for each in federation.history)
        table.add_row(
            Text(str(member.id), "red" if member.byzantine else "cyan"),
            Text("Byzantine" if member.byzantine else member.role, "red" if member.byzantine else ""),
            Text(word, STYLES[word]),
            "" if weight is None else f"{weight:.3f}",
            Text("" if weight is None else bar(weight, top), "red" if member.byzantine else "cyan"),
            f"{refused}x" if refused else "",
            Text(why),
        )
    if len(told) > MOST:
        table.add_row("...", f"{len(told) - MOST} more", *[""] * 5)
    return table


STYLES = {"connected": "green", "rejected": "yellow", "missing": "yellow", "failed": "red", "lost": "bold red"}


def state(member: Member, report: RoundReport | None) -> tuple[str, str]:
    """What became of a node in the last round, and why."""
    if member.lost:
        return "lost", member.lost
    if report is not None and member.id in report.errors:
        return "failed", report.errors[member.id]
    if report is not None and member.id in report.rejected:
        return "rejected", report.rejected[member.id]
    if report is not None and member.id in report.missing:
        return "missing", "did not speak in time"
    return "connected", report.events.get(member.id, "") if report is not None else ""


def curve(values: Sequence[float], width: int = WIDTH) -> str:
    """Numbers as a line of bars from their least to their greatest, the last `width` points of equal parts."""
    if len(values) > width:
        cuts = [round(k * len(values) / width) for k in range(width + 1)]
        values = [values[end - 1] for end in cuts[1:]]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high - low
    return "".join(
        "×" if not math.isfinite(value) else BARS[int((value - low) / span * 7.999) if span else 3] for value in values
    )


def bar(value: float, top: float, width: int = 8) -> str:
    """A share of the largest, as a bar of fixed width."""
    share = value / top if top > 0 and math.isfinite(value) else 0.0
    return ("━" * round(max(0.0, share) * width)).ljust(width)
