"""An operator over the workers of a pool gives what it gives here, and fails as one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import byzflow
from byzflow.actors import ActorPool, ActorPoolConfig, SubTask
from byzflow.actors.conformance import echo
from byzflow.actors.process import ProcessBackend
from byzflow.actors.tcp import ActorServer, TcpBackend
from byzflow.actors.tile import Tile
from byzflow.actors.tiles import HeldRows, aggregate_over, hold, spread
from byzflow.errors import (
    ActorError,
    ExtraError,
    NonFiniteRows,
    NotEnoughSenders,
    RowsError,
    UnknownOperator,
    WorkerDied,
)
from byzflow.graph import RobustOp, run_operator
from byzflow.operators import CoordinateWise
from byzflow.rows import Rows

COLUMN = ["mean", "median", "trimmed_mean(f=2)", "meamed(f=2)", "phocas(f=2)"]
SPAN = [
    "krum(f=2)", "multi_krum(f=2)", "geometric_median", "mda(f=2)", "cge(f=2)", "centered_clipping(tau=2.0)",
    "caf(f=2)", "faba(f=2)", "foolsgold", "nnm(f=2)",
]  # fmt: skip
CHAINS = [
    "nnm(f=2) | trimmed_mean(f=2)", "arc(f=2) | nnm(f=2) | median", "bucketing(s=2) | krum(f=1)", "momentum | median",
]  # fmt: skip
ATTACKS = ["sign_flip(f=2)", "ipm(f=2)", "alie(f=2)", "min_max(f=2)", "mimic(f=2)"]


def here_too(x: Any, spec: str, **extras: Any) -> Any:
    return byzflow.parse(spec)(x, **extras)


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 3


@asynccontextmanager
async def pool_of(kind: str) -> AsyncIterator[ActorPool]:
    allow = {f"byzflow.actors.tile:{Tile.__name__}": Tile, f"{__name__}:Made": Made}
    async with ActorServer("tcp://127.0.0.1:0", allow=allow) as server:
        threads = ActorPoolConfig("thread:", 3)
        processes = ActorPoolConfig("process:", 2)
        remote = ActorPoolConfig(server.url, 2)
        kinds = {"thread": [threads], "process": [processes], "tcp": [remote], "mixed": [remote, processes, threads]}
        async with asyncio.timeout(120), ActorPool(kinds[kind]) as pool:
            yield pool


class Made(Tile):
    """Rows that the worker makes by itself: some columns of what everybody can make."""

    def __init__(self, n: int, d: int, start: int, stop: int) -> None:
        super().__init__(normal(n, d)[:, start:stop])


async def all_rules(pool: ActorPool) -> None:
    x = normal(9, 101)
    async with await spread(pool, x) as held:
        for spec in [*COLUMN, *SPAN, *CHAINS, *ATTACKS]:
            got, expected = await held.aggregate(spec), here_too(x, spec)
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype), spec
            if spec in COLUMN:
                assert torch.equal(got, expected), spec
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=spec)


async def all_sizes(pool: ActorPool) -> None:
    for d in (1, 2, 3, 8, 100):  # also fewer coordinates than workers
        for n, f in ((7, 2), (3, 0)):  # krum's bound
            x = normal(n, d)
            for spec in ("krum", "median", "nnm | trimmed_mean"):
                torch.testing.assert_close(
                    await aggregate_over(pool, spec, x, f=f), byzflow.aggregate(spec, x, f=f), rtol=1e-5, atol=1e-6
                )


async def hostile_rows(pool: ActorPool) -> None:
    x = normal(9, 50)
    x[2, 49] = torch.nan  # in the last tile alone
    x[5, 0] = -torch.inf
    x[7] = 1e30
    x[8] = x[0]
    async with await spread(pool, x) as held:
        for spec in ("median", "krum(f=2)", "nnm(f=3) | trimmed_mean(f=3)", "geometric_median", "alie(f=2)"):
            got, expected = await held.explain(spec), byzflow.parse(spec).explain(x)
            torch.testing.assert_close(got.value, expected.value, rtol=1e-4, atol=1e-5, msg=spec)
            assert (got.rejected, got.operator, got.n) == ((2, 5), expected.operator, 7)
            assert got.bound_exceeded == expected.bound_exceeded
        with pytest.raises(NonFiniteRows, match="rows 2, 5 hold NaN or Inf"):
            await held.aggregate("median", nonfinite="raise")
        kept = await held.aggregate("median", nonfinite="keep")
        assert torch.equal(kept, byzflow.aggregate("median", x, nonfinite="keep"))
        assert torch.equal(await held.aggregate("median"), byzflow.aggregate("median", x))  # and after an error


async def state_comes_back(pool: ActorPool) -> None:
    for spec in ("momentum | median", "centered_clipping(tau=2.0)", "foolsgold", "clipped_clustering", "mimic(f=1)"):
        here: Any = {}
        there: Any = {}
        for step in range(3):
            x = normal(6, 40, step)
            if step == 1:
                x[3, 1] = torch.nan  # a row without a memory of its own
            expected = byzflow.parse(spec).explain(x, **here)
            async with await spread(pool, x) as held:
                got = await held.explain(spec, **there)
            torch.testing.assert_close(got.value, expected.value, rtol=1e-5, atol=1e-5, msg=spec)
            assert got.state.keys() == expected.state.keys()
            here, there = expected.state, got.state


async def attackers_own_rows(pool: ActorPool) -> None:
    x, own = normal(9, 40), normal(2, 40, 1)
    for spec in ("sign_flip(f=2, knowledge=own)", "ipm(f=2, knowledge=colluders)", "alie(f=2, knowledge=colluders)"):
        got = await aggregate_over(pool, spec, x, own=own)
        torch.testing.assert_close(got, here_too(x, spec, own=own), rtol=1e-5, atol=1e-6)


async def made_there(pool: ActorPool) -> None:
    """Nothing but sums and answers crosses."""
    names = list(pool.workers)[::-1]  # any order, and not of equal length
    cuts = [*[0, 7, *range(30, 30 + 10 * len(names), 10)][: len(names)], 90]
    tiles = {name: (9, 90, a, b) for name, a, b in zip(names, cuts[:-1], cuts[1:], strict=True)}
    async with await hold(pool, tiles, Made) as held:
        for spec in ("median", "krum(f=2)", "nnm(f=2) | trimmed_mean(f=2)", "sign_flip(f=2)"):
            got = await held.aggregate(spec)
            torch.testing.assert_close(got, here_too(normal(9, 90), spec), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["thread", "process", "tcp", "mixed"])
@pytest.mark.parametrize("work", [all_rules, hostile_rows, made_there], ids=lambda work: work.__name__)
def test_on_every_pool(work: Any, kind: str) -> None:
    async def main() -> None:
        async with pool_of(kind) as pool:
            await work(pool)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["thread", "tcp"])
@pytest.mark.parametrize("work", [all_sizes, state_comes_back, attackers_own_rows], ids=lambda work: work.__name__)
def test_where_values_are_shared_and_where_they_cross(work: Any, kind: str) -> None:
    test_on_every_pool(work, kind)


@pytest.mark.parametrize("spec", ["median", "nnm(f=2) | trimmed_mean(f=2)"])
def test_rows_of_every_kind(spec: str) -> None:
    x = normal(9, 62)
    split = [{"a": row[:60].reshape(5, 12), "b": row[60:61].double(), "c": row[61].reshape(())} for row in x]
    kinds = [
        x.numpy(),
        list(x),
        x.reshape(9, 2, 31),
        x.half(),
        split,
        [{name: value.numpy() for name, value in row.items()} for row in split],
        x.T.contiguous().T,
        [{f"{k}": row[k : k + 1] for k in range(62)} | {"none": row[:0]} for row in x.repeat(20, 1)],  # many arrays
    ]

    async def main() -> None:
        async with pool_of("tcp") as pool:
            for rows in kinds:
                got, expected = await aggregate_over(pool, spec, rows), here_too(rows, spec)
                assert type(got) is type(expected)
                pairs = [(got, expected)] if not isinstance(got, dict) else [(got[k], expected[k]) for k in expected]
                for ours, theirs in pairs:
                    assert (type(ours), ours.dtype, ours.shape) == (type(theirs), theirs.dtype, theirs.shape)
                    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-6)

    asyncio.run(main())


def test_the_answer_does_not_depend_on_who_is_late() -> None:
    async def main() -> None:
        x = normal(9, 3001) * torch.logspace(-6, 6, 3001)
        async with pool_of("thread") as pool:
            seen = [await aggregate_over(pool, "nnm | geometric_median", x, f=2) for _ in range(10)]
            seen += await asyncio.gather(*(aggregate_over(pool, "nnm | geometric_median", x, f=2) for _ in range(10)))
            assert all(torch.equal(each, seen[0]) for each in seen)

    asyncio.run(main())


def test_what_cannot_run_on_tiles_is_refused() -> None:
    async def main() -> None:
        x = normal(7, 30)
        async with pool_of("thread") as pool:
            for spec in ("layerwise(rule=median)", "nnm(f=1) | layerwise(rule=median)", "flame(f=1)"):
                with pytest.raises(RowsError, match="needs whole rows, and here each place has some"):
                    await aggregate_over(pool, spec, x)
            with pytest.raises(RowsError, match="only their inner products are known here"):
                await aggregate_over(pool, "dnc(f=1)", x)
            with pytest.raises(NotEnoughSenders, match=r"krum.* needs at least 9 senders, got 7"):
                await aggregate_over(pool, "krum", x, f=3)
            with pytest.raises(RowsError, match="no coordinates"):
                await aggregate_over(pool, "median", torch.ones(3, 0))
            with pytest.raises(UnknownOperator):
                await aggregate_over(pool, "nothing", x)

    asyncio.run(main())


def test_an_error_of_the_rows_has_its_type_also_over_tcp() -> None:
    async def main() -> None:
        x = torch.full((5, 8), torch.nan)
        async with pool_of("mixed") as pool:
            with pytest.raises(NonFiniteRows, match="all 5 rows"):
                await aggregate_over(pool, "median", x)

    asyncio.run(main())


class Halting(Tile):
    """Ends its process, or fails, when its part of a sum is asked for the second time."""

    def __init__(self, x: Tensor, how: str) -> None:
        super().__init__(x)
        self.how, self.turns = how, 0

    async def turn(self, total: Tensor | None) -> Tensor | None:
        self.turns += 1
        if self.turns > 1 and self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.turns > 1 and self.how == "fail":
            raise ZeroDivisionError("here")
        part = await super().turn(total)
        if self.how == "lie" and part is not None:
            return part[:3]
        return part


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("die", WorkerDied, "ended, because worker 'process-1' died with its tile"),
        ("fail", ZeroDivisionError, "here"),
        ("lie", ActorError, r"worker 'process-1' sent no part of this sum: torch.float64 of shape \(3,\)"),
    ],
)
def test_one_tile_that_fails_ends_the_call_on_all(how: str, error: type[Exception], words: str) -> None:
    async def main() -> None:
        x = normal(9, 40)
        configs = [ActorPoolConfig("process:", 2), ActorPoolConfig("thread:", 1)]
        async with asyncio.timeout(60), ActorPool(configs) as pool:
            plain = [str(name) for name in pool.workers if name != "process-1"]
            held = await hold(pool, {"process-0": (x[:, :10], ""), "process-1": (x[:, 10:20], how)}, Halting)
            more = await hold(pool, {"thread-0": (x[:, 20:],)})
            both = HeldRows(pool, *_together(held, more))
            async with asyncio.timeout(10):
                with pytest.raises(error, match=words):
                    await both.aggregate("geometric_median")
            for name in plain:  # nothing waits there any more, and the pool is whole
                assert await pool.run_subtask(SubTask(echo, (1,), affinity=name, require=True)) == 1
            torch.testing.assert_close(await aggregate_over(pool, "krum", x, f=2), byzflow.aggregate("krum", x, f=2))
            if how == "die":
                with pytest.raises(ActorError, match="'process-1' went with it when it was replaced: hold it again"):
                    await both.aggregate("median")

    asyncio.run(main())


def test_an_extra_that_is_not_finite_is_its_givers_fault() -> None:
    async def main() -> None:
        async with pool_of("thread") as pool:
            center = torch.ones(40).index_fill(0, torch.tensor([39]), torch.nan)
            with pytest.raises(ExtraError, match="center holds NaN or Inf"):
                await aggregate_over(pool, "centered_clipping(tau=1.0)", normal(9, 40), center=center)
            x = normal(9, 40).index_fill(0, torch.tensor([3]), torch.nan)
            kept = [byzflow.parse("alie(f=2)").explain(x, nonfinite="keep")]
            async with await spread(pool, x) as held:  # sums stay finite where rows are kept that are not
                kept.append(await held.explain("alie(f=2)", nonfinite="keep"))
            assert [each.weights for each in kept] == [None, None]
            torch.testing.assert_close(kept[0].value, kept[1].value, equal_nan=True)

    asyncio.run(main())


def _together(held: HeldRows, more: HeldRows) -> Any:
    from dataclasses import replace

    from byzflow.layout import Span

    places = [*held.places, *(replace(each, spans=(Span(0, 20, 40),)) for each in more.places)]
    return places, Rows.of(torch.ones(9, 40)).layout, 9


def test_a_worker_killed_from_outside_in_the_middle() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), ActorPool([ActorPoolConfig("process:", 2)]) as pool:
            async with await hold(pool, dict.fromkeys(pool.workers, (9, 90, 0, 30)), Slow) as held:
                running = asyncio.create_task(held.aggregate("krum(f=2)"))
                await asyncio.sleep(0.5)
                backend = pool.workers["process-0"].backend
                assert isinstance(backend, ProcessBackend)
                assert backend.pid is not None
                os.kill(backend.pid, signal.SIGKILL)
                async with asyncio.timeout(5):
                    with pytest.raises(WorkerDied, match=r"krum.*worker 'process-0' died with its tile"):
                        await running
            x = normal(9, 40)
            assert torch.equal(await aggregate_over(pool, "median", x), byzflow.aggregate("median", x))

    asyncio.run(main())


class Slow(Made):
    async def turn(self, total: Tensor | None) -> Tensor | None:
        await asyncio.sleep(3600)
        return None


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_cancelled_call_leaves_nothing_waiting(kind: str) -> None:
    async def main() -> None:
        async with pool_of(kind) as pool:
            held = await hold(pool, dict.fromkeys(pool.workers, (9, 90, 0, 30)), Slow)
            running = asyncio.create_task(held.aggregate("krum(f=2)"))
            await asyncio.sleep(0.3)
            running.cancel()
            async with asyncio.timeout(5):
                outcome = (await asyncio.gather(running, return_exceptions=True))[0]
                assert isinstance(outcome, asyncio.CancelledError)
                assert await pool.run_many([SubTask(echo, (k,)) for k in range(6)]) == list(range(6))
            running = asyncio.create_task(held.aggregate("krum(f=2)"))
            await asyncio.sleep(0.3)
            async with asyncio.timeout(5):
                await pool.shutdown()
                with pytest.raises(WorkerDied):
                    await running

    asyncio.run(main())


def waiting_for_a_sum() -> int:
    """Threads of workers in which an operator waits."""
    frames = sys._current_frames()
    return sum(
        any(f.name == "total" for f in traceback.extract_stack(frames[thread.ident]))
        for thread in threading.enumerate()
        if thread.ident in frames and thread.name.startswith("byzflow-")
    )


def test_an_owner_that_goes_leaves_no_thread_behind() -> None:
    async def main() -> None:
        async with ActorServer("tcp://127.0.0.1:0", allow={"byzflow.actors.tile:Tile": Tile}) as server:
            worker = TcpBackend(server.host, server.port)
            await worker.start("w")
            number, _ = await worker.create(Tile, (normal(9, 40),), {})
            running = asyncio.create_task(worker.invoke(number, "run", ("krum(f=2)", "reject", False, {}, {}), {}))
            await asyncio.sleep(0)  # it is asked first
            part = await worker.invoke(number, "turn", (None,), {})
            assert part.shape == (10 * 10 + 9,)  # a Gram with its origin, and which rows are not finite
            with pytest.raises(ActorError, match="runs on this tile already"):
                await worker.invoke(number, "run", ("median", "reject", False, {}, {}), {})
            assert waiting_for_a_sum() == 1
            await worker.close()
            with pytest.raises(WorkerDied):
                await running
            for _ in range(100):
                if not waiting_for_a_sum():
                    return
                await asyncio.sleep(0.02)
            raise AssertionError("an operator still waits for a sum")

    asyncio.run(main())


def test_tiles_that_do_not_fit_are_refused() -> None:
    async def main() -> None:
        async with pool_of("thread") as pool:
            x = normal(9, 40)
            with pytest.raises(RowsError, match="'thread-1' has 8 rows, the one on 'thread-0' has 9"):
                await hold(pool, {"thread-0": (x,), "thread-1": (x[1:],)})
            with pytest.raises(ActorError, match="no worker 'threat-0' for a tile"):
                await hold(pool, {"threat-0": (x,)})
            with pytest.raises(RowsError, match="a tile of 65537 rows; it may have 65536"):
                await hold(pool, {"thread-0": (torch.ones(65_537, 1),)})
            with pytest.raises(RowsError, match="no tiles"):
                await hold(pool, {})
            with pytest.raises(RowsError, match="center does not fit"):
                await aggregate_over(pool, "centered_clipping(tau=1.0)", x, center=torch.ones(3))
        async with pool_of("tcp") as pool:
            with pytest.raises(ActorError, match="may not be run here"):
                await hold(pool, {"tcp-0": (x,)}, Slow)

    asyncio.run(main())


@dataclass(frozen=True)
class Lowest(CoordinateWise):
    """The smallest; offered by no plugin."""

    name = "lowest"

    def columns(self, x: Tensor) -> Tensor:
        return x.amin(0)


def test_operators_of_no_plugin_run_where_objects_may_go() -> None:
    async def main() -> None:
        x = normal(5, 40)
        async with pool_of("thread") as pool:
            assert torch.equal(await aggregate_over(pool, Lowest(), x), x.amin(0))
        async with pool_of("tcp") as pool:
            with pytest.raises(ActorError, match="UnknownOperator: unknown operator 'lowest'"):
                await aggregate_over(pool, Lowest(), x)

    asyncio.run(main())


def test_a_step_of_a_graph_may_be_spread() -> None:
    async def main() -> None:
        x = normal(9, 40)
        async with pool_of("process") as pool:
            step = RobustOp("centered_clipping(tau=2.0)", spread=True)
            inputs = {"rows": x, "center": x.mean(0)}
            got = await run_operator(step, inputs, pool=pool)
            torch.testing.assert_close(got, here_too(x, "centered_clipping(tau=2.0)", center=x.mean(0)))
            alone = await run_operator(step, inputs)  # no pool: here
            torch.testing.assert_close(alone, got)

    asyncio.run(main())
