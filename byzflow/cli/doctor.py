"""`byzflow doctor`: is this installation whole?"""

from __future__ import annotations

import json

import click


@click.command(name="doctor", short_help="Check this installation, or the way to another host.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--connect", metavar="URL", help="Check the way to an actor server instead, such as tcp://host:7000.")
@click.option("--keys", type=click.Path(), help="Folder of keys for --connect.")
def command(as_json: bool, connect: str | None, keys: str | None) -> None:
    """Check this installation, or the way to an actor server; exit code 1 if something is broken."""
    from rich.console import Console
    from rich.markup import escape

    from byzflow.errors import ActorError
    from byzflow.health import checks, connection

    if keys is not None and connect is None:
        raise ActorError("--keys is for --connect: give the URL of an actor server too, such as tcp://host:7000")
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
