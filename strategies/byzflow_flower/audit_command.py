"""`byzflow audit`: who moved the model, from the file that `Robust(audit_file=...)` writes.

Only click is imported here, so that `byzflow --help` stays fast. audit_table.py prints, audit_picture.py draws.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from byzflow.errors import ByzflowError


@click.command(
    name="audit",
    short_help="Who moved the model in a Flower run.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", "number", metavar="N", type=int, help="Which run of the file, from 1; default: the last.")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Save a picture, nodes by rounds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def command(file: Path, number: int | None, plot: Path | None, as_json: bool) -> None:
    """What the rounds of a training say of each node, from the JSON lines of FILE.

    Nodes are sorted by suspicion, which nears 1 for those that lie and 0 for honest ones.
    """
    from byzflow_flower import audit_file, audit_table

    runs = audit_file.runs(audit_file.read(file))
    if number is not None and not 1 <= number <= len(runs):
        raise ByzflowError(f"{file} holds {len(runs)} runs: --run must be 1 to {len(runs)}, got {number}")
    rounds = [each for each in runs[(number or len(runs)) - 1] if each.step == "train"]
    if not rounds:
        raise ByzflowError(f"{file} holds no round of training in this run")
    nodes = audit_table.by_node(rounds)
    if not nodes:
        raise ByzflowError(f"{file} names no node in this run")
    if plot is not None:
        if not plot.suffix:
            raise ByzflowError(f"--plot {plot}: the name says the format, such as {plot}.png")
        from byzflow_flower.audit_picture import draw

        draw(rounds, nodes, plot)
    if as_json:
        click.echo(json.dumps(audit_table.as_dict(rounds, nodes), indent=2, allow_nan=False))
    else:
        audit_table.show(rounds, nodes, len(runs), plot)
