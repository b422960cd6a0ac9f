"""`byzflow show`: one operator, whole."""

from __future__ import annotations

import json

import click


@click.command(name="show", short_help="What an operator does, and its parameters.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str, as_json: bool) -> None:
    """What operator NAME does, its parameters and where it comes from."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from byzflow.catalogue import describe
    from byzflow.registry import installed

    one = describe(installed().find(name))
    if as_json:
        click.echo(json.dumps(one, indent=2))
        return
    console = Console()
    aliases = f"  (also {', '.join(one['aliases'])})" if one["aliases"] else ""
    console.print(f"[bold cyan]{one['name']}[/]  {one['kind']}, {one['class']}{aliases}\n")
    for paragraph in one["text"].split("\n\n"):  # wrapped for the terminal, not as in the source
        console.print(escape(" ".join(paragraph.split())) + "\n", highlight=False)
    if one["parameters"]:
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("parameter", style="cyan", no_wrap=True)
        table.add_column("takes")
        table.add_column("default", no_wrap=True)
        table.add_column("meaning")
        for p in one["parameters"]:
            table.add_row(p["name"], p["accepts"], "required" if p["required"] else p["default"], p["help"])
        console.print(table)
    if one["extras"]:
        console.print(f"\nextras of a call: {', '.join(one['extras'])}")
    console.print(f"\nfrom plugin {one['plugin']} of package {one['package']}", highlight=False)
