"""Training with a bar to look at."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from byzflow.errors import FederationError

Metrics = Mapping[str, Any]


async def train_with_progress(
    runner: Any,
    rounds: int,
    eval_callback: Callable[[], Metrics | Awaitable[Metrics]] | None = None,
    eval_interval: int = 1,
    *,
    console: Console | None = None,
) -> list[tuple[int, Metrics]]:
    """So many rounds of a `ParameterServer`, `PeerToPeer` or `Federation`: (round, metrics), rounds from 1.

    Every `eval_interval` rounds, and after the last, the metrics are those of `eval_callback()`, or of the round's own
    report where there is no callback. Raises FederationError unless rounds >= 0 and eval_interval >= 1.
    """
    if rounds < 0 or eval_interval < 1:
        raise FederationError(f"rounds must be >= 0 and eval_interval >= 1, got {rounds} and {eval_interval}")
    told: list[tuple[int, Metrics]] = []
    shown = TextColumn("{task.fields[shown]}")
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), shown)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=rounds, shown="")
        for number in range(1, rounds + 1):
            await runner.round()
            latest: dict[str, Any] = {}
            if number % eval_interval == 0 or number == rounds:
                metrics: Any = runner.history[-1].metrics if eval_callback is None else eval_callback()
                metrics = await metrics if inspect.isawaitable(metrics) else metrics
                told.append((number, metrics))
                latest["shown"] = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            bar.update(task, advance=1, **latest)
    return told
