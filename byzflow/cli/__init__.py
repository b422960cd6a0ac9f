"""The command line: one command a file, found by entry points of the group `byzflow.commands`.

Only click is imported here, so that `byzflow --help` answers at once; a command imports what it needs when it
runs. Every ByzflowError, and every wrong flag, becomes one line on stderr and exit code 2; every warning one line.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import IO, Any

import click

from byzflow import __version__
from byzflow.errors import ByzflowError, did_you_mean, one_line


class Mistake(click.ClickException):
    """What the user got wrong, in one line."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """On stderr, as it stands."""
        click.echo(self.message, file=file, err=True)


@contextmanager
def mistakes() -> Iterator[None]:
    """Say a ByzflowError, and what click says in four lines, in one."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:  # the help is the answer
        raise
    except ByzflowError as error:
        raise Mistake(f"byzflow: {error}") from error
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "byzflow"
        said = error.format_message().replace("a valid integer range", "an integer").replace("float range", "number")
        raise Mistake(f"{path}: {said}{'' if said[-1] in '.?' else '.'} Try `{path} --help`.") from error


class Commands(click.Group):
    """Commands by entry point, loaded when they are named; a package may add its own."""

    def __init__(self, *args: Any, entry_points: str = "byzflow.commands", **kwargs: Any) -> None:
        """`entry_points` is the group of entry points that the commands are found in."""
        super().__init__(*args, **kwargs)
        self.entry_points = entry_points

    def points(self) -> dict[str, EntryPoint]:
        """Entry points by command name."""
        return {point.name: point for point in entry_points(group=self.entry_points)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return sorted(self.points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, None if there is none."""
        point = self.points().get(cmd_name)
        if point is None:
            return None
        try:
            command = point.load()
        except (Exception, SystemExit) as error:
            package = point.dist.name if point.dist else point.value
            raise click.UsageError(
                f"command {cmd_name!r} of package {package} does not import: {one_line(error)}"
            ) from error
        return command if isinstance(command, click.Command) else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does, with a suggestion for a name that is not there."""
        if args and not args[0].startswith("-") and args[0] not in self.points():
            ctx.fail(f"no such command {args[0]!r}; {did_you_mean(args[0], self.points())}")
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments; mistakes in them are said in one line."""
        with mistakes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; mistakes are said in one line."""
        with mistakes():
            return super().invoke(ctx)


@click.group(name="byzflow", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="byzflow")
def group() -> None:
    """Training that stays right when some participants lie, break or are slow."""


def main() -> None:
    """The `byzflow` program."""
    warnings.showwarning = lambda message, *_: click.echo(f"byzflow: warning: {message}", err=True)
    try:
        group(prog_name="byzflow")
    except BrokenPipeError:  # `byzflow list | head`
        sys.stderr.close()
        sys.exit(1)
