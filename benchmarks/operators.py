"""`python -m benchmarks.operators`: byzflow beside ByzFL, ByzPy and Flower, and beside the speed of memory.

Each contestant is called once in a process of its own, for its peak memory, its result and a first time; those that
are within the limit then run interleaved. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.apart import Apart

if TYPE_CHECKING:
    from benchmarks.workloads import Workload

SECTIONS = ("operators", "byzpy", "growth", "threads", "flower")
QUICK_SHAPES = ((10, 1_000_000), (64, 65_536))
START = 60.0  # seconds that a process may need besides what it measures


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _parser().parse_args(arguments)
    apart = Apart(options.threads, options.limit)  # before anything numerical is imported
    from benchmarks import machine, peers

    problem = peers.install()
    if problem:
        print(f"without ByzFL and ByzPy: {problem}", file=sys.stderr)
    absent = peers.available()
    record: dict[str, Any] = {
        "schema": 1,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join(["python -m benchmarks.operators", *(sys.argv[1:] if arguments is None else arguments)]),
        "machine": machine.describe(options.threads),
        "settings": {"rounds": options.rounds, "budget": options.budget, "limit": options.limit},
        "absent": absent,
        "workloads": [],
        "threads": [],
    }
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    todo = list(_workloads(options))
    kernels = _kernel_shapes(options) if "threads" in options.section else ()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(todo) + len(kernels))
        for workload in todo:
            progress.update(task, description=workload.label)
            record["workloads"].append(_measured(apart, workload, absent, options))
            _write(record, options.json)
            progress.advance(task)
        for n, d in kernels:
            progress.update(task, description=f"kernels on 1 and 2 threads {n} x {d:,}")
            record["threads"].append(_kernels(apart, n, d, options))
            _write(record, options.json)
            progress.advance(task)
    record["finished"] = time.strftime("%Y-%m-%d %H:%M:%S %z")
    _write(record, options.json)
    from benchmarks import report

    report.show(record)
    if options.plot is not None:
        from benchmarks import plot

        plot.draw(record, options.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write all samples here, after every workload")
    parser.add_argument("--plot", type=Path, help="draw time by d and by n here (.png)")
    parser.add_argument("--quick", action="store_true", help="two shapes, few rounds, a low limit")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this rule; may be repeated")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="only this part; may be repeated")
    parser.add_argument("--shapes", type=_shape, nargs="+", metavar="NxD", help="shapes of the rules, such as 10x1e6")
    parser.add_argument("--leaves", type=int, nargs="+", help="arrays of a model in a Flower round (default 8)")
    parser.add_argument("--threads", type=int, default=1, help="threads for every library (default 1)")
    parser.add_argument("--rounds", type=int, help="runs of a contestant at most (default 15)")
    parser.add_argument("--budget", type=float, help="seconds for the runs of one contestant (default 1.5)")
    parser.add_argument("--limit", type=float, help="a contestant that needs longer for one call is out (default 20 s)")
    return _Parser(parser)


class _Parser:
    """Fills in what --quick and the rest leave open."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser

    def parse_args(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        found = self.parser.parse_args(arguments)
        rounds, budget, limit = (5, 0.3, 5.0) if found.quick else (15, 1.5, 20.0)
        found.rounds = found.rounds or rounds
        found.budget = budget if found.budget is None else found.budget
        found.limit = found.limit or limit
        found.section = found.section or SECTIONS
        return found


def _shape(text: str) -> tuple[int, int]:
    n, _, d = text.partition("x")
    return int(n), int(float(d))


def _workloads(options: argparse.Namespace) -> Iterator[Workload]:
    from benchmarks import workloads

    shapes = options.shapes or (QUICK_SHAPES if options.quick else workloads.SHAPES)
    if "operators" in options.section:
        yield from workloads.operators(shapes, options.only)
    if "byzpy" in options.section:
        yield from workloads.byzpy(options.only)
    if "growth" in options.section:
        yield from workloads.growth(options.only, options.quick)
    if "flower" in options.section:
        yield from workloads.flower(options.only, options.shapes, options.leaves or (8,))


def _kernel_shapes(options: argparse.Namespace) -> Sequence[tuple[int, int]]:
    from benchmarks import workloads

    return options.shapes or (QUICK_SHAPES if options.quick else workloads.SHAPES)


def _measured(apart: Apart, workload: Workload, absent: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.case import contestants, describe
    from benchmarks.memory import probe
    from benchmarks.timing import interleaved
    from byzflow.errors import ByzflowError

    found: dict[str, Any] = asdict(workload) | {"input_bytes": 4 * workload.n * workload.d}
    try:
        found |= describe(workload)
    except ByzflowError as error:  # a rule of someone's plugin, with parameters that nobody knows here
        return found | {"kind": "unknown", "problem": str(error), "contestants": {}}
    results: dict[str, dict[str, Any]] = {}
    for name in contestants(workload, absent):
        outcome = apart.run(probe, workload, name, options.limit, limit=2 * options.limit + START)
        result = {"role": "ours" if name == "byzflow" else "peer", "state": outcome.state, "detail": outcome.detail}
        results[name] = result | (outcome.value or {})
    running = {name: result["first_seconds"] for name, result in results.items() if result["state"] == "ok"}
    if "byzflow" in running:
        expected = sum(max(options.budget, 4 * seconds) for seconds in running.values())
        outcome = apart.run(
            interleaved,
            workload,
            running,
            options.rounds,
            options.budget,
            limit=2 * (START + 6 * options.budget + expected),
        )
        if outcome.state == "ok":
            found["read_by"] = outcome.value["read_by"]
            for name, samples in outcome.value["samples"].items():
                results.setdefault(name, {"role": "yardstick", "state": "ok"}).update(summary(samples))
        else:
            found["problem"] = f"{outcome.state}: {outcome.detail}"
    return found | {"contestants": results}


def _kernels(apart: Apart, n: int, d: int, options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.timing import by_threads

    counts = (1, 2)
    outcome = apart.run(by_threads, n, d, options.rounds, options.budget, counts, limit=10 * START)
    kernels = {name: summary(samples) for name, samples in (outcome.value or {}).items()}
    return {"n": n, "d": d, "threads": counts, "kernels": kernels, "state": outcome.state, "detail": outcome.detail}


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of samples, and the samples."""
    if len(samples) < 2:
        low = high = samples[0]
    else:
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": statistics.median(samples), "q1": low, "q3": high, "samples": list(samples)}


def _write(record: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        new = file.with_name(f"{file.name}.new")
        new.write_text(json.dumps(record, indent=1))
        new.replace(file)


if __name__ == "__main__":
    main()
