"""`byzflow list`: the installed operators."""

from __future__ import annotations

import json
import re

import click


@click.command(name="list", short_help="The installed operators.")
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(kind: str | None, as_json: bool) -> None:
    """Installed operators; KIND is aggregators, pre-aggregators or attacks."""
    from rich.console import Console
    from rich.table import Table

    from byzflow.catalogue import describe
    from byzflow.errors import UnknownOperator
    from byzflow.registry import KINDS, installed

    plurals = {f"{one}s": one for one in KINDS}
    if kind is not None:
        kind = kind.lower().replace("_", "-")
        kind = plurals.get(kind, kind)
        if kind not in KINDS:
            raise UnknownOperator(kind, plurals, "kind")
    found = [describe(entry) for entry in installed().of_kind(kind)]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    console = Console()
    for section in KINDS:
        members = [one for one in found if one["kind"] == section]
        if not members:
            continue
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(f"{section}s", style="cyan", no_wrap=True, min_width=18)
        table.add_column("needs", min_width=11, max_width=14)
        table.add_column("what it does")
        for one in members:
            table.add_row(one["name"], re.split("[;,]", one["needs"])[0], one["summary"].partition(" Needs n")[0])
        console.print(table)
        console.print()
