"""`byzflow run`: a federation, or a sweep of them, from one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from byzflow.federation.config import Config
    from byzflow.federation.federation import Federation


@click.command(name="run")
@click.argument("file", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Another value for a key of the file.")
@click.option("--sweep", "sweeps", multiple=True, metavar="KEY=V1,V2", help="A run for each value, or combination.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each run.")
@click.option("--rounds", "each_round", is_flag=True, help="Print each round too, instead of the live view.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, if there is one: federation.resume=true.")
@click.option("--check", is_flag=True, help="Check the file and say what would run; run nothing.")
def command(
    file: str,
    overrides: tuple[str, ...],
    sweeps: tuple[str, ...],
    as_json: bool,
    each_round: bool,
    resume: bool,
    check: bool,
) -> None:
    """Run the federation of a TOML, YAML or JSON file."""
    from rich.console import Console

    from byzflow.federation import config, schemas
    from byzflow.federation.sinks import sink_of
    from byzflow.federation.typed_file import at

    if resume:
        overrides = (*overrides, "federation.resume=true")
    runs = config.sweep(file, overrides, sweeps, note=lambda text: click.echo(f"byzflow: {text}", err=True))
    for point, each in runs:  # all are built before one is run: a mistake in the last shows at once
        with at(", ".join([file, *(f"{key}={value}" for key, value in point.items())])):
            found = schemas.of(each)
            if found.make in schemas.BUILT_IN:
                found(each)
            if each.metrics.file is not None:
                with at("metrics.file"):
                    sink_of(each.metrics.file)
    _check_apart(file, [each for _, each in runs])
    if check:
        for point, each in runs:
            click.echo(_json({"sweep": point, "config": each.as_dict()}) if as_json else _told(each, point))
        return
    console = Console()
    results = []
    for point, each in runs:
        result = _run(each, point, as_json, each_round, console)
        results.append((point, result))
        if as_json:
            click.echo(_json({"sweep": point, **_plain(result)}))
    if len(runs) > 1 and not as_json:
        _table(results, console)


def _check_apart(file: str, runs: list[Config]) -> None:
    """SpecError if runs would write over each other's files."""
    from pathlib import Path

    from byzflow.errors import SpecError

    for key, instead, paths in (
        ("metrics.file", ", and take --json --rounds", [each.metrics.file for each in runs]),
        ("federation.checkpoint", "", [each.federation.checkpoint for each in runs]),
        ("federation.ledger", "", [each.federation.ledger for each in runs]),
    ):
        given = [Path(path) for path in paths if path is not None]
        if len(set(given)) < len(given):
            raise SpecError(
                f"{file}: {key}: {len(runs)} runs would write over each other's {given[0]}: leave it out{instead}"
            )


def _run(each: Config, point: dict[str, Any], as_json: bool, each_round: bool, console: Any) -> Any:
    """A Summary, or what a schema of somebody's own gave."""
    import asyncio

    from byzflow.federation import schemas
    from byzflow.federation.federation import Federation
    from byzflow.federation.report import History
    from byzflow.federation.summary import summary

    made = schemas.of(each)(each)
    if isinstance(made, History):
        return summary(made)
    if not isinstance(made, Federation):
        return made
    if point and not as_json:
        console.print(", ".join(f"{key}={value}" for key, value in point.items()), style="bold", highlight=False)
    try:
        asyncio.run(_rounds(made, each, as_json, each_round or not console.is_terminal, each_round, console))
    except KeyboardInterrupt:
        click.echo(f"byzflow: stopped by the keyboard after {len(made.history)} rounds", err=True)
        raise click.exceptions.Exit(130) from None
    result = summary(made.history, [member.id for member in made.members.values() if member.byzantine])
    if not as_json:
        for line in result.lines():
            console.print(line, highlight=False, markup=False)
    return result


async def _rounds(
    federation: Federation, each: Config, as_json: bool, lines: bool, each_round: bool, console: Any
) -> None:
    """All rounds that are not done, shown as they come."""
    from contextlib import ExitStack, closing

    from rich.live import Live

    from byzflow.federation.live_view import live_view
    from byzflow.federation.sinks import file_sink

    rounds = each.federation.rounds
    title = f"{each.federation.topology or each.federation.schema or 'star'}, {each.defence.rule}"
    live = None if as_json or lines else Live(console=console, auto_refresh=False)
    async with federation:
        done = len(federation.history)
        if done:
            click.echo(f"byzflow: resumed from {each.federation.checkpoint}: {done} rounds are done", err=True)
        with ExitStack() as open_while:
            if each.metrics.file is not None:
                sink = open_while.enter_context(closing(file_sink(each.metrics.file, done)))
                federation.sinks = (*federation.sinks, sink)
            if live is not None:
                open_while.enter_context(live)
            for number in range(done, rounds):
                if number == rounds - 1:
                    federation.observer.every = 1  # the last model is always looked at
                report = await federation.round()
                if live is not None:
                    live.update(live_view(federation, rounds, title), refresh=True)
                elif as_json and each_round:
                    click.echo(_json(report.as_dict()))
                elif not as_json:
                    click.echo(report.line())


def _plain(result: Any) -> dict[str, Any]:
    from byzflow.federation.summary import Summary

    return result.as_dict() if isinstance(result, Summary) else {"result": _jsonable(result)}


def _jsonable(value: Any) -> Any:
    try:
        _json(value)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _json(value: Any) -> str:
    """One line of JSON; NaN and Inf are null, as JSON has neither."""
    import msgspec

    return msgspec.json.encode(value).decode()


def _told(each: Config, point: dict[str, Any]) -> str:
    """One line of what would run."""
    from byzflow.federation.build import byzantine, faults
    from byzflow.federation.schemas import of

    name, graph = of(each).name, each.federation.topology
    plan = name if graph in ("", name) else f"{name} over {graph}"
    liars = len(byzantine(each))
    parts = [
        f"{plan}: {each.nodes.count} nodes, {liars} Byzantine ({each.attack.name})",
        f"{each.defence.rule} for f={faults(each)}",
        f"{each.model.name} on {each.data.name}, {each.data.partition}",
        f"{each.federation.rounds} rounds",
    ]
    prefix = ", ".join(f"{key}={value}" for key, value in point.items())
    return (f"{prefix}: " if prefix else "") + "; ".join(parts)


def _table(results: list[tuple[dict[str, Any], Any]], console: Any) -> None:
    """All runs of a sweep, the best accuracy marked."""
    from rich.table import Table

    from byzflow.federation.summary import Summary

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    keys = list(results[0][0])
    for key in keys:
        table.add_column(key, style="cyan", overflow="fold")
    for name in ("accuracy", "loss", "Byzantine weight", "s/round"):
        table.add_column(name, justify="right", no_wrap=True)
    told = [(point, result) for point, result in results if isinstance(result, Summary)]
    top = max((result.metrics.get("accuracy", 0.0) for _, result in told), default=0.0)
    for point, result in told:
        accuracy = result.metrics.get("accuracy")
        table.add_row(
            *(str(point[key]) for key in keys),
            "" if accuracy is None else f"[green]{accuracy:.3f}[/]" if accuracy == top else f"{accuracy:.3f}",
            f"{result.metrics['loss']:.3f}" if "loss" in result.metrics else "",
            "" if result.byzantine_weight is None else f"{result.byzantine_weight:.3f}",
            f"{result.seconds_per_round:.3g}",
        )
    console.print(table)
