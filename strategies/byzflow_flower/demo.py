"""`byzflow demo`: attack a federation of digit readers and see which aggregators survive.

Only click is imported here, so that `byzflow --help` stays fast. demo_grid.py runs the cells, demo_table.py prints
them, demo_picture.py draws them.
"""

from __future__ import annotations

from pathlib import Path

import click

from byzflow.errors import ByzflowError


@click.command(
    name="demo",
    short_help="Attack a Flower training; see who survives.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--aggregator", "aggregators", metavar="SPEC", multiple=True, help="Only this aggregator or chain.")
@click.option("--attack", "attacks", metavar="SPEC", multiple=True, help="Only this attack; also none and label_flip.")
@click.option("--f", "f", metavar="N", type=int, default=3, show_default=True, help="Byzantine clients.")
@click.option("--rounds", metavar="N", type=int, default=25, show_default=True, help="Rounds of training.")
@click.option("--clients", metavar="N", type=int, default=10, show_default=True, help="Clients, honest and not.")
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Same seed, same figures.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Where the picture goes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def command(
    aggregators: tuple[str, ...],
    attacks: tuple[str, ...],
    f: int,
    rounds: int,
    clients: int,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Train one small network on scikit-learn's handwritten digits with Flower, again and again.

    Each time another attack runs against another aggregator. Without options it is five attacks against four
    aggregators, 20 runs in less than a minute. --aggregator and --attack narrow that to a column, a row or one
    cell, and can be given more than once:

    \b
        byzflow demo --aggregator "arc | nnm | trimmed_mean" --attack "ipm(tau=3)" --f 2
    """
    try:
        from byzflow_flower import demo_grid, demo_picture, demo_table
    except ModuleNotFoundError as problem:
        if problem.name not in ("flwr", "sklearn"):
            raise
        needed = "pip install 'byzflow[flower,plots]'"
        raise ByzflowError(f"the demo needs {problem.name}, which is not installed: {needed}") from None

    plan = demo_grid.Plan(
        attacks=tuple(dict.fromkeys(attacks)) or demo_grid.ATTACKS,
        aggregators=tuple(dict.fromkeys(aggregators)) or demo_grid.AGGREGATORS,
        f=f,
        rounds=rounds,
        clients=clients,
        seed=seed,
    )
    plan.check()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ByzflowError(f"cannot make the folder {out}: {problem.strerror}") from None
    with demo_table.progress(plan) as step:
        outcome = demo_grid.run(plan, step)

    picture = demo_picture.draw(outcome, out)
    if as_json:
        click.echo(demo_table.as_json(outcome, picture))
    else:
        demo_table.show(outcome, picture)
