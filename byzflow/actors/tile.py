"""Some coordinates of n rows on a worker, and an operator that runs on them while others run it on the rest.

A run of the operator is one call, `run`, that lasts until its result is there. Meanwhile the owner calls `turn` again
and again: it takes this tile's part of the next sum and brings the total of the one before. When `run` is cancelled, or
the worker's connection ends, the thread that waits for a total gets an error: nothing outlasts the call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from byzflow.actors.host import here
from byzflow.errors import ActorError, RowsError
from byzflow.operators import Nonfinite, Operator
from byzflow.rows import Rows
from byzflow.spec import parse

ROWS = 1 << 16  # each takes far more memory than a byte that it may have come as

Given = tuple[Sequence[int], Sequence[Tensor]]
"""Vectors on their way to a tile: which of them there are, and each leaf's (k, b) values of those."""


class Tile:
    """Some coordinates of n rows. Subclass it for rows that a worker makes or reads by itself.

    `leaves`: each an (n, b) tensor or array, or a list of n vectors; together they are this tile's coordinates.
    A class for workers behind `tcp://` is an entry point of the group `byzflow.remote` there, as this one is.
    """

    def __init__(self, *leaves: Any) -> None:
        """Raises RowsError for leaves that do not fit each other, or more than 65,536 rows."""
        n = max(map(len, leaves), default=0)
        if n > ROWS:
            raise RowsError(f"a tile of {n} rows; it may have {ROWS}: are rows and columns exchanged?")
        self.rows = Rows.of([{str(k): leaf[i] for k, leaf in enumerate(leaves) if i < len(leaf)} for i in range(n)])
        self._sums: _Sums | None = None

    def shape(self) -> list[Any]:
        """n, and the length and the dtype of each leaf."""
        return [self.rows.n, [[leaf.numel, str(leaf.dtype).removeprefix("torch.")] for leaf in self.rows.layout.leaves]]

    async def run(
        self,
        operator: str | Operator,
        nonfinite: Nonfinite,
        audit: bool,
        extras: Mapping[str, Any],
        vectors: Mapping[str, Given],
    ) -> dict[str, Any]:
        """This tile's part of an aggregation, as plain data; `vectors` are the extras that have d coordinates."""
        if self._sums is not None:
            raise ActorError("an operator runs on this tile already; one call after the other")
        sums = self._sums = _Sums()
        work = asyncio.ensure_future(here().call(self._run, (operator, nonfinite, audit, extras, vectors, sums)))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            sums.end()
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # seen
            raise
        finally:
            sums.end()
            self._sums = None

    async def turn(self, total: Tensor | None) -> Tensor | None:
        """Bring the last sum's total (None at first), take this tile's part of the next; None once there is no more.

        Comes after its `run`, as calls of one owner do. Raises ActorError if nothing here waits for a total.
        """
        if self._sums is None:
            return None
        return await self._sums.turn(total)

    def _run(
        self,
        operator: str | Operator,
        nonfinite: Nonfinite,
        audit: bool,
        extras: Mapping[str, Any],
        vectors: Mapping[str, Given],
        sums: _Sums,
    ) -> dict[str, Any]:
        rule = parse(operator)
        given = dict(extras)
        for name, (present, leaves) in vectors.items():
            values = self._vectors(present, leaves)
            if name == "own":
                given[name] = Rows.of(values).shard(sums.total)
            else:
                given[name] = values if name in rule.memories else values[0]
        result = rule.run(self.rows.shard(sums.total), nonfinite=nonfinite, audit=audit, **given)
        cut = rule.vector_names & result.state.keys()
        return {
            "many": isinstance(result.value, list),
            "value": self._leaves(result.value if isinstance(result.value, list) else [result.value]),
            "operator": result.operator,
            "n": result.n,
            "weights": result.weights,
            "distances": result.distances,
            "rejected": list(result.rejected),
            "bound_exceeded": result.bound_exceeded,
            "state": {name: value for name, value in result.state.items() if name not in cut},
            "vectors": {name: self._given(result.state[name]) for name in cut},
        }

    def _vectors(self, present: Sequence[int], leaves: Sequence[Tensor]) -> list[Any]:
        """A mapping for each vector that there is, else None."""
        found = iter(range(sum(present)))
        return [
            {str(k): leaf[i] for i in [next(found)] for k, leaf in enumerate(leaves)} if there else None
            for there in present
        ]

    def _leaves(self, answers: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """Each leaf's (m, b) values of m answers."""
        return [
            torch.stack([torch.as_tensor(answer[str(k)]).reshape(-1) for answer in answers])
            if answers
            else torch.empty(0, leaf.numel, dtype=leaf.dtype)
            for k, leaf in enumerate(self.rows.layout.leaves)
        ]

    def _given(self, value: Any) -> list[Any]:
        """A state's vector, or its list of them, as `run` takes it; lists are marked by `many`."""
        values = value if isinstance(value, list) else [value]
        there = [each for each in values if each is not None]
        return [isinstance(value, list), [int(each is not None) for each in values], self._leaves(there)]


class _Sums:
    """Between the thread in which an operator runs and the loop on which the owner asks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[Tensor | None] = asyncio.Queue()
        self._lock = threading.Lock()
        self._waiting: Future[Tensor] | None = None
        self._ended = False

    def total(self, part: Tensor) -> Tensor:
        """The sum over all tiles, in the operator's thread. Raises ActorError when the run was ended."""
        waiting: Future[Tensor] = Future()
        with self._lock:
            if self._ended:
                raise ActorError("the call was ended before all tiles had brought their part of a sum")
            self._waiting = waiting
        self._loop.call_soon_threadsafe(self._parts.put_nowait, part)
        return waiting.result()

    async def turn(self, total: Tensor | None) -> Tensor | None:
        """See `Tile.turn`."""
        if total is not None:
            with self._lock:
                waiting, self._waiting = self._waiting, None
            if waiting is None:
                raise ActorError("no sum of this tile waits for a total")
            waiting.set_result(total.clone())  # who gets it may change it
        return await self._parts.get()

    def end(self) -> None:
        """Nobody will bring another total."""
        with self._lock:
            waiting, self._waiting, self._ended = self._waiting, None, True
        if waiting is not None:
            waiting.set_exception(ActorError("the call was ended before all tiles had brought their part of a sum"))
        self._parts.put_nowait(None)
