"""`byzflow new TEMPLATE NAME`: something to start from. A template is a command of the group `byzflow.templates`."""

from __future__ import annotations

import click

from byzflow.cli import Commands


@click.group(name="new", cls=Commands, entry_points="byzflow.templates")
def command() -> None:
    """Write something to start from, such as a Flower app."""
