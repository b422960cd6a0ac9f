"""Operators on rows whose coordinates are on several workers, as tiles: one pool, one operator, one result.

Every worker runs the operator on its own tile. What couples them, sums of n x n at most, is added up here, in the order
of the coordinates, and handed back to all. No worker sees another's coordinates; rows that workers hold do not move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from byzflow.actors.backend import Backend
from byzflow.actors.parts import Place, added, joined, laid_out
from byzflow.actors.pool import ActorPool
from byzflow.actors.tile import Given, Tile
from byzflow.actors.worker import Worker
from byzflow.engine.execute import check_shards
from byzflow.engine.report import Aggregation
from byzflow.errors import ActorError, ExtraError, RowsError, WorkerDied
from byzflow.layout import Layout, Span
from byzflow.operators import Attack, Nonfinite, Operator
from byzflow.rows import Rows
from byzflow.spec import parse

LOOSE = 1000  # arrays of a tile that are sent as they lie; more are stacked by leaf
TURNS = 10_000  # sums of one run; an operator takes a few for each of its stages


class HeldRows:
    """n rows whose coordinates are on workers of a pool. Made by `spread` or `hold`; dropped at the end of `with`."""

    def __init__(self, pool: ActorPool, places: Sequence[Place], layout: Layout, n: int) -> None:
        self.pool, self.places, self.layout, self.n = pool, tuple(places), layout, n

    async def aggregate(
        self, operator: str | Operator, f: int | None = None, *, nonfinite: Nonfinite = "reject", **extras: Any
    ) -> Any:
        """As `byzflow.aggregate`, or for an attack `byzflow.attack`. Column rules give the same numbers, span rules
        the same to the rounding of their dtype: sums are added in another order.

        Raises what they raise; RowsError for a rule that needs whole rows; WorkerDied, and ActorError for a tile that
        is not there any more. Whatever fails, all tiles stop.
        """
        return (await self._run(operator, f, nonfinite, False, extras)).value

    async def explain(
        self, operator: str | Operator, f: int | None = None, *, nonfinite: Nonfinite = "reject", **extras: Any
    ) -> Aggregation:
        """As `aggregate`, with the audit: weights, rejected rows and the state for the next call."""
        return await self._run(operator, f, nonfinite, True, extras)

    async def drop(self) -> None:
        """Forget the tiles; no error if a worker is gone."""
        await asyncio.gather(*(place.backend.drop(place.number) for place in self.places))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.drop()

    async def _run(
        self, operator: str | Operator, f: int | None, nonfinite: Nonfinite, audit: bool, extras: Mapping[str, Any]
    ) -> Aggregation:
        rule = checked(parse(operator, f=f), self.n)
        extras = {name: value for name, value in extras.items() if value is not None}
        long = {name: self._long(name, extras.pop(name)) for name in (rule.vector_names | {"own"}) & extras.keys()}
        async with self.pool.together([place.worker for place in self.places], str(rule)) as workers:
            at = {worker.name: worker for worker in workers}
            try:
                async with asyncio.TaskGroup() as group:
                    runs = [
                        group.create_task(self._one(place, at[place.worker], rule, nonfinite, audit, extras, long))
                        for place in self.places
                    ]
                    await self._turns(runs)
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
        return joined(self.places, [run.result() for run in runs], self.layout, rule)

    async def _one(
        self,
        place: Place,
        worker: Worker,
        rule: Operator,
        nonfinite: Nonfinite,
        audit: bool,
        extras: Mapping[str, Any],
        long: Mapping[str, tuple[list[int], Rows]],
    ) -> dict[str, Any]:
        """One tile's part of a run."""
        if worker.backend is not place.backend:
            raise ActorError(f"the tile on worker {place.worker!r} went with it when it was replaced: hold it again")
        given = {name: _cut(present, rows, place.spans) for name, (present, rows) in long.items()}
        # an operator that no plugin offers has no spec that reads: where objects may cross, it does
        sent = rule if place.backend.trusted else str(rule)
        try:
            return await place.ask("run", sent, nonfinite, audit, dict(extras), given)  # type: ignore[no-any-return]
        except WorkerDied as death:
            worker.died = True
            raise WorkerDied(f"{rule} ended, because worker {place.worker!r} died with its tile: {death}") from death

    async def _turns(self, runs: Sequence[asyncio.Task[dict[str, Any]]]) -> None:
        """Add up sums until the runs are over. A run that fails cancels this."""
        total: Tensor | None = None
        for _ in range(TURNS):
            try:
                parts = await asyncio.gather(*(place.ask("turn", total) for place in self.places))
            except WorkerDied:
                await asyncio.wait(runs, return_when=asyncio.FIRST_EXCEPTION)  # it says more
                raise
            over = [k for k, part in enumerate(parts) if part is None]
            if over:
                await asyncio.wait([runs[k] for k in over])
                if len(over) < len(runs):
                    waits = next(place for place, part in zip(self.places, parts, strict=True) if part is not None)
                    raise ActorError(
                        f"worker {self.places[over[0]].worker!r} has its result while worker {waits.worker!r} waits "
                        "for a sum: another version on one of them?"
                    )
                return
            total = added(self.places, parts)
        raise ActorError(f"workers {[place.worker for place in self.places]} ask for more than {TURNS} sums in one run")

    def _long(self, name: str, value: Any) -> tuple[list[int], Rows]:
        """An extra of d coordinates, or a list of them: which there are, and their values."""
        like = Rows((), self.layout)
        many = isinstance(value, list | tuple) or name == "own"
        values = list(value) if many else [value]
        there = like.vectors(name, [each for each in values if each is not None])
        if name != "own" and not all(bool(torch.isfinite(leaf).all()) for source in there.sources for leaf in source):
            raise ExtraError(f"{name} holds NaN or Inf")  # here, so that a sum that is not finite is its worker's fault
        return [int(each is not None) for each in values], there


async def aggregate_over(
    pool: ActorPool,
    operator: str | Operator,
    rows: Any,
    f: int | None = None,
    *,
    nonfinite: Nonfinite = "reject",
    **extras: Any,
) -> Any:
    """An operator over all workers of a pool: the rows are cut, sent, and each worker runs it on its coordinates.

    The same result as in this process, see `HeldRows.aggregate`; on one host `byzflow.aggregate` is faster.
    """
    rows = Rows.of(rows)
    checked(parse(operator, f=f), rows.n)  # before anything is sent
    async with await spread(pool, rows) as held:
        return await held.aggregate(operator, f, nonfinite=nonfinite, **extras)


async def spread(pool: ActorPool, rows: Any) -> HeldRows:
    """Cut n rows, given here, into tiles of about as many coordinates, one for each worker; at most d of them."""
    rows = Rows.of(rows)
    layout = replace(rows.layout, total=None)
    places = min(pool.size, layout.d)
    if not places:
        raise RowsError("the rows have no coordinates: there is nothing to spread")
    loose = rows.n * len(layout.leaves) <= LOOSE
    tiles = {}
    spans = [tuple(_between(layout, layout.d * k // places, layout.d * (k + 1) // places)) for k in range(places)]
    for worker, each in zip(pool.workers, spans, strict=False):
        cut = [[source[span.leaf][span.start : span.stop] for source in rows.sources] for span in each]
        tiles[worker] = tuple(cut if loose else [torch.stack(leaf) for leaf in cut])
    numbers = await _create(pool, Tile, tiles)
    found = [Place(*at, each) for at, each in zip(numbers, spans, strict=True)]
    return HeldRows(pool, found, layout, rows.n)


async def hold(pool: ActorPool, tiles: Mapping[str, Sequence[Any]], kind: Any = Tile) -> HeldRows:
    """A tile on each of these workers: `kind(*arguments)` there, in the order of the coordinates.

    `tiles` maps names of workers to arguments. `kind` is `Tile`, or a subclass, or the name of one, that makes or reads
    its own coordinates there: then no rows cross. The rows are vectors of all tiles' coordinates one after the other.
    Raises RowsError if the tiles have not equally many rows.
    """
    if not tiles:
        raise RowsError("no tiles: name a worker for at least one")
    numbers = await _create(pool, kind, tiles)
    held = HeldRows(pool, [Place(*at, ()) for at in numbers], Layout((), torch.device("cpu")), 0)
    try:
        shapes = await asyncio.gather(*(place.ask("shape") for place in held.places))
        return HeldRows(pool, *laid_out(held.places, shapes))
    except BaseException:
        await held.drop()
        raise


def checked(operator: Operator, n: int) -> Operator:
    """The operator, if it can run on tiles of n rows. Raises RowsError, NotEnoughSenders."""
    check_shards(operator)
    if not isinstance(operator, Attack):
        operator.check(n)
    return operator


async def _create(pool: ActorPool, kind: Any, tiles: Mapping[str, Sequence[Any]]) -> list[tuple[str, Backend, int]]:
    """An object on each worker, or on none."""
    label = f"a tile ({getattr(kind, '__name__', kind)})"
    made: list[tuple[str, Backend, int]] = []

    async def create(worker: Worker) -> None:
        assert worker.backend is not None
        try:
            number, _ = await worker.backend.create(kind, tiles[worker.name], {})
        except WorkerDied as death:
            worker.died = True
            raise WorkerDied(f"worker {worker.name!r} died when it was given {label}: {death}") from death
        made.append((worker.name, worker.backend, number))

    async with pool.together(tiles, label) as workers:
        try:
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(create(worker))
        except BaseException as error:
            await asyncio.gather(*(backend.drop(number) for _, backend, number in made))
            raise (error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error) from None
    order = list(tiles)
    return sorted(made, key=lambda each: order.index(each[0]))


def _between(layout: Layout, start: int, stop: int) -> Iterator[Span]:
    """The spans of coordinates start to stop, numbered through all leaves."""
    before = 0
    for k, leaf in enumerate(layout.leaves):
        a, b = max(start - before, 0), min(stop - before, leaf.numel)
        if a < b:
            yield Span(k, a, b)
        before += leaf.numel


def _cut(present: list[int], vectors: Rows, spans: Sequence[Span]) -> Given:
    """Some coordinates of vectors."""
    return present, [
        torch.stack([source[span.leaf][span.start : span.stop] for source in vectors.sources])
        if vectors.sources
        else torch.empty(0, span.stop - span.start)
        for span in spans
    ]
