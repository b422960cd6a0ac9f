"""`python -m benchmarks.pool`: an operator over a pool's workers beside the engine in one process.

here 1, here 2    byzflow.aggregate, with so many threads of torch
threads           two thread workers, rows given here
processes         two process workers, rows given here: cut and copied to them in each call
held              two process workers that hold their tiles: sums go there and back, and the answer comes
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor

import byzflow
from benchmarks.case import Case
from benchmarks.machine import describe
from benchmarks.timing import Cases, measure
from byzflow.actors import ActorPool, ActorPoolConfig, HeldRows, aggregate_over, spread
from byzflow.operators import Operator

RULES = ("median", "krum", "nnm | trimmed_mean", "geometric_median")
SHAPES = ("10x1000000", "100x100000")
SMALL = 1000  # coordinates of the calls that load code before a short one


def rows_of(n: int, d: int) -> Tensor:
    """(n, d) float32."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def over(runner: asyncio.Runner, pool: ActorPool, operator: Operator, x: Tensor) -> Any:
    """Cut here, sent, and the answer."""
    return runner.run(aggregate_over(pool, operator, x))


def cases(runner: asyncio.Runner, pools: dict[str, ActorPool], held: HeldRows, rule: str, x: Tensor) -> Cases:
    """All ways to one result."""
    f = len(x) // 5
    operator = byzflow.parse(rule, f=f)
    found = {f"here {threads}": Case(operator, x, threads) for threads in (1, 2)}
    for name, pool in pools.items():
        found[name] = Case(partial(over, runner, pool, operator), x, 1)
    return found | {"held": Case(lambda _: runner.run(held.aggregate(operator)), None, 1)}


def run(runner: asyncio.Runner, shapes: Sequence[str], rules: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Seconds of each call, by shape and rule."""
    torch.set_num_threads(1)  # which a worker's thread keeps from when it first runs something
    stack, results = AsyncExitStack(), []

    async def start() -> dict[str, ActorPool]:
        kinds = {"threads": "thread:", "processes": "process:"}
        return {
            name: await stack.enter_async_context(ActorPool([ActorPoolConfig(url, 2)])) for name, url in kinds.items()
        }

    async def given(x: Tensor) -> HeldRows:
        return await stack.enter_async_context(await spread(pools["processes"], x))

    pools = runner.run(start())
    try:
        for shape in shapes:
            n, d = map(int, shape.split("x"))
            full, few = rows_of(n, d), rows_of(n, SMALL)
            held, held_few = runner.run(given(full)), runner.run(given(few))
            for rule in rules:
                ways = cases(runner, pools, held, rule, full)
                samples = measure(ways, cases(runner, pools, held_few, rule, few), rounds, budget=5.0)
                results.append({"rule": rule, "n": n, "d": d, "f": n // 5, "samples": samples})
    finally:
        runner.run(stack.aclose())
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """The fastest call and the median, in milliseconds, as Markdown."""
    names = list(results[0]["samples"])
    lines = [f"| n x d | rule | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]
    for each in results:
        took = [each["samples"][name] for name in names]
        times = " | ".join(f"{1e3 * min(seconds):.1f} ({1e3 * median(seconds):.1f})" for seconds in took)
        lines.append(
            f"| {each['n']} x {each['d']:,} | {each['rule']} | {times} |".replace(" | trimmed", " \\| trimmed")
        )
    return "\n".join(lines)


@click.command()
@click.option("--shapes", multiple=True, default=SHAPES, show_default=True, help="n x d.")
@click.option("--only", "rules", multiple=True, default=RULES, show_default=True, help="Rules, as specs without f.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Where every sample goes.")
def main(shapes: Sequence[str], rules: Sequence[str], rounds: int, path: Path | None) -> None:
    """Times of an operator over two workers, and in one process: the fastest call, and the median, in ms."""
    machine = describe(threads=1)
    with asyncio.Runner() as runner:
        results = run(runner, shapes, rules, rounds)
    click.echo(table(results))
    if path is not None:
        path.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
