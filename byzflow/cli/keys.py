"""`byzflow keys`: who one is to other hosts, and whom one trusts."""

from __future__ import annotations

import json
from pathlib import Path

import click

FOLDER = click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=Path("keys"), show_default=True, help="Folder of keys."
)


@click.group(name="keys")
def command() -> None:
    """Make keys for links between hosts, and say whom to trust."""


@command.command(short_help="Make a key and its certificate.")
@click.argument("name")
@FOLDER
def new(name: str, folder: Path) -> None:
    """Make a key and its certificate; NAME is for the people who look at it."""
    from byzflow.actors.keys import Keys

    made = Keys.new(name, folder)
    click.echo(f"{made.key} is secret. Give {made.certificate} to those who shall trust this side.")


@command.command(short_help="Let in who holds the key of a certificate.")
@click.argument("name")
@click.argument("certificate", type=click.Path(path_type=Path))
@FOLDER
def trust(name: str, certificate: Path, folder: Path) -> None:
    """Let in who holds the key of CERTIFICATE, and know it as NAME."""
    from byzflow.actors.keys import Keys

    Keys(folder).trust(name, certificate)
    click.echo(f"{name} is trusted by {folder}.")


@command.command("list")
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def listed(folder: Path, as_json: bool) -> None:
    """Whom this folder trusts."""
    from byzflow.actors.keys import Keys
    from byzflow.errors import KeyFault

    if not folder.is_dir():
        raise KeyFault(f"{folder} is no folder of keys: name one by --dir, or make it by `byzflow keys new NAME`")
    names = {name: mark for mark, name in Keys(folder).names().items()}
    if as_json:
        click.echo(json.dumps(names, indent=2))
    else:
        for name, mark in names.items():
            click.echo(f"{name:<20} {mark}")
