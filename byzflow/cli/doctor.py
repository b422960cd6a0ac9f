"""`byzflow doctor`: is this installation whole?"""

from __future__ import annotations

import json

import click


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--connect", metavar="URL", help="Check the way to an actor server instead, such as tcp://host:7000.")
@click.option("--keys", type=click.Path(), help="Folder of keys for --connect.")
def command(as_json: bool, connect: str | None, keys: str | None) -> None:
    """Check this installation; exit code 1 if something is broken."""
    from rich.console import Console
    from rich.markup import escape

    from byzflow.health import checks, connection

    results = checks() if connect is None else [connection(connect, keys)]
    broken = any(result.state == "broken" for result in results)
    if as_json:
        rows = [{"name": r.name, "state": r.state, "detail": r.detail} for r in results]
        click.echo(json.dumps({"healthy": not broken, "checks": rows}, indent=2))
    else:
        console = Console()
        marks = {"ok": "[green]ok[/]     ", "absent": "[yellow]absent[/] ", "broken": "[red]broken[/] "}
        for result in results:
            console.print(f"{marks[result.state]} {result.name:<14} {escape(result.detail)}", highlight=False)
    if broken:
        raise SystemExit(1)
