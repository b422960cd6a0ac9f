"""`byzflow study`: which defences survive heterogeneous data."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command(name="study", short_help="Which defences survive heterogeneous data.")
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True, help="Training steps of a run.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of data and batches.")
@click.option("--rule", "rules", multiple=True, help="Rules instead of the default ones; may be repeated.")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(steps: int, seed: int, rules: tuple[str, ...], jobs: int, as_json: bool) -> None:
    """Worst accuracy over five attacks: rule x {plain, nnm, arc | nnm} x heterogeneity, on generated data."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from byzflow.experiments.heterogeneity import ATTACKS, BEFORE, GAMMAS, RULES, attack_free, study
    from byzflow.experiments.softmax import Setting

    setting, chosen = Setting(gamma=1.0, seed=seed, steps=steps), rules or RULES
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stderr = Console(stderr=True)
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("training", total=len(chosen) * len(BEFORE) * len(GAMMAS))
        cells = study(setting, rules=chosen, jobs=jobs, done=lambda cell: bar.advance(task))
    best = attack_free(setting)
    if as_json:
        rows = [asdict(cell) | {"worst": cell.worst} for cell in cells]
        click.echo(json.dumps({"setting": asdict(setting), "attack_free": best, "cells": rows}, indent=2))
        return
    table = Table(
        title=f"Worst test accuracy over {len(ATTACKS)} attacks (the mean without attack: {best:.2f})",
        title_justify="left",
        box=None,
        header_style="bold",
        padding=(0, 2, 0, 0),
    )
    table.add_column("gamma", style="cyan", no_wrap=True)
    table.add_column("before it", no_wrap=True)
    for rule in chosen:
        table.add_column(rule.partition("(")[0], justify="right")
    for gamma in GAMMAS:
        for before in BEFORE:
            row = [cell for cell in cells if (cell.gamma, cell.before) == (gamma, before)]
            worst = [next(f"{cell.worst:.2f}" for cell in row if cell.rule == rule) for rule in chosen]
            table.add_row("" if before else f"{gamma:g}", before or "-", *worst, end_section=before == BEFORE[-1])
    console = Console()
    console.print(table)
    console.print("\ngamma: share of the data dealt out evenly; the rest is sorted by label", highlight=False)
