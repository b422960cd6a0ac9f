"""What an operator will cost and why: its passes over the rows, their bytes, operations and expected time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from byzflow.engine.passes import column_pass, combine_pass, gram_pass
from byzflow.operators import Chain, CoordinateWise, Mixing, Operator, PreAggregator
from byzflow.ranks import RankMean, network
from byzflow.rows import Mixed, Rows


@dataclass(frozen=True)
class Pass:
    """One pass over the rows."""

    what: str
    bytes: int
    """Read and written."""
    operations: int
    """Multiplications and additions, or comparisons."""
    milliseconds: float
    """Expected on this machine, with torch's current number of threads."""


@dataclass(frozen=True)
class Plan:
    """The passes of an operator over n rows of d coordinates. What is n x n between them does not depend on d."""

    operator: str
    n: int
    d: int
    passes: tuple[Pass, ...]

    @property
    def milliseconds(self) -> float:
        """Expected for all passes."""
        return sum(each.milliseconds for each in self.passes)

    def __str__(self) -> str:
        """A table: what, GB, Gop, ms."""
        head = f"{self.operator}: n = {self.n}, d = {self.d:,}; about {self.milliseconds:.1f} ms"
        lines = [
            f"  {each.what:<34} {each.bytes / 1e9:8.3f} GB {each.operations / 1e9:9.3f} Gop {each.milliseconds:8.1f} ms"
            for each in self.passes
        ]
        return "\n".join([head, *lines])


@dataclass(frozen=True)
class Speeds:
    """What this machine does in a second, measured once a process on a few megabytes."""

    read: float  # bytes
    products: float  # multiplications and additions of the Gram
    mixed: float  # of combining and mixing
    compared: float  # comparisons of a network


def plan(operator: Operator, n: int, d: int, dtype: torch.dtype = torch.float32) -> Plan:
    """The passes of an operator over n CPU rows of d coordinates. Raises NotEnoughSenders as a call would."""
    operator.check(n)
    speeds = calibrate(torch.get_num_threads())
    stages = operator.stages if isinstance(operator, Chain) else (operator,)
    size = dtype.itemsize
    passes: list[Pass] = []

    def add(
        what: str, rows_read: int, written: int, products: float = 0, mixed: float = 0, compared: float = 0
    ) -> None:
        moved = (rows_read + written) * d * size
        seconds = moved / speeds.read
        seconds += products / speeds.products + mixed / speeds.mixed + compared / speeds.compared
        passes.append(Pass(what, moved, int(products + mixed + compared), seconds * 1e3))

    rows, mixing = n, False
    for k, stage in enumerate(stages):
        if not isinstance(stage, Mixing):
            continue
        for name, pivot in stage.pivots.items():
            add(f"{name} of the {rows} rows", n, 1, 0, 2.0 * n * rows * d if mixing else 0, _compared(pivot, rows) * d)
        if k == 0 or stage.pivots:
            points = n + len(stage.pivots) + 1
            add(f"Gram of {points - 1} rows", n, 0, points * (points + 1) / 2 * 2.0 * d)
        if isinstance(stage, PreAggregator):
            rows = stage.out_rows(rows)
        mixing = True
    last = stages[-1]
    if isinstance(last, CoordinateWise):
        picked = f"mix into {rows} and rank" if mixing else "rank"
        add(picked, n, 1, 0, 2.0 * n * rows * d if mixing else 0, _compared(last, rows) * d)
    else:
        made = last.out_rows(rows) if isinstance(last, PreAggregator) else 1
        add(f"combine into {made}", n, made, 0, 2.0 * n * made * d)
    return Plan(str(operator), n, d, tuple(passes))


def _compared(rule: CoordinateWise, n: int) -> float:
    made = rule.rule(n)
    ranks = made.ranks(n) if made is not None else (0, n)
    return len(network(n, *ranks))


@cache
def calibrate(threads: int) -> Speeds:
    """Measure this machine; a tenth of a second, once for each number of threads."""
    n, d = 16, 1 << 17
    rows = Rows.of(list(torch.ones(n, d)))
    mixed = Mixed([rows], torch.full((n, n), 1 / n, dtype=torch.float64))
    moved = n * d * 4
    read = moved / _best(lambda: [source[0].sum() for source in rows.sources])
    middle = RankMean(n // 2, n // 2 + 1)
    rank = max(_best(lambda: column_pass(rows, middle, rule=middle)) - moved / read, 1e-6)
    gram = max(_best(lambda: gram_pass(rows, [])) - moved / read, 1e-6)
    mix = max(_best(lambda: combine_pass(mixed)) - 2 * moved / read, 1e-6)
    return Speeds(
        read, (n + 1) * (n + 2) * d / gram, 2 * n * n * d / mix, len(network(n, n // 2, n // 2 + 1)) * d / rank
    )


def _best(work: Callable[[], object], times: int = 3) -> float:
    took = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took)
