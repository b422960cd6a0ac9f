"""`byzflow theory`: what is proven of the installed aggregations."""

from __future__ import annotations

import json
from typing import Any

import click

LEGEND = """breakdown: the share of Byzantine rows up to which the result stays bounded
kappa: the result's squared distance to the honest mean, in honest variances
with nnm: kappa behind nnm; lambda: the distance, in honest diameters"""


@click.command(name="theory", short_help="How far f Byzantine rows of n can move a rule.")
@click.argument("specs", nargs=-1)
@click.option("--n", type=click.IntRange(1), required=True, help="Rows.")
@click.option("--f", type=click.IntRange(0), required=True, help="Byzantine rows among them.")
@click.option("--d", type=click.IntRange(1), help="Coordinates; bounds for any number without it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(specs: tuple[str, ...], n: int, f: int, d: int | None, as_json: bool) -> None:
    """How far f Byzantine rows of n can move each of SPECS (default: every installed aggregator)."""
    from rich.console import Console
    from rich.table import Table

    from byzflow.catalogue import aggregations
    from byzflow.robustness import theory

    specs = specs or tuple(aggregations())
    found = [(theory(spec, n, f, d), theory(f"nnm | {spec}", n, f, d)) for spec in specs]
    if as_json:
        click.echo(json.dumps([alone.as_dict() | {"behind_nnm": mixed.as_dict()} for alone, mixed in found], indent=2))
        return
    least = f"no rule has kappa below {f / (n - 2 * f):.3g}" if 2 * f < n else "no rule bears half of the rows or more"
    table = Table(
        title=f"n = {n}, f = {f}; {least}",
        title_justify="left",
        box=None,
        header_style="bold",
        padding=(0, 2, 0, 0),
    )
    table.add_column("rule", style="cyan", overflow="fold", min_width=18)
    for heading in ("valid", "breakdown", "kappa <=", "with nnm", "lambda <="):
        table.add_column(heading, no_wrap=True, justify="right", min_width=len(heading))
    table.add_column("note")
    for spec, (alone, mixed) in zip(specs, found, strict=True):
        numbers = (alone.breakdown, alone.kappa_upper, mixed.kappa_upper, alone.lambda_upper)
        table.add_row(spec, "yes" if alone.valid else "[red]no[/]", *map(_number, numbers), alone.note)
    console = Console()
    console.print(table)
    console.print(f"\n{LEGEND}", highlight=False)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"
