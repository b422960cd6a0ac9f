"""Runs graphs in the background."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Coroutine, Generator, Mapping
from concurrent.futures import Future
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

from byzflow.errors import GraphError
from byzflow.graph.digest import digest
from byzflow.graph.nodes import ComputationGraph
from byzflow.graph.scheduler import NodeScheduler
from byzflow.graph.subtask import Pool

R = TypeVar("R")


class ExecutionFuture:
    """The outputs of a run to come: `await` it in an event loop, or call `result()` anywhere."""

    def __init__(self, future: Future[dict[str, Any]]) -> None:
        self._future = future

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """The outputs by name; blocks. Raises what the run raised, or TimeoutError after `timeout` seconds."""
        return self._future.result(timeout)

    def done(self) -> bool:
        """If the run has ended."""
        return self._future.done()

    def cancel(self) -> bool:
        """Stop the run; false if it has ended."""
        return self._future.cancel()

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        return asyncio.wrap_future(self._future).__await__()


class ExecutionSession:
    """Runs graphs on an event loop in a thread of its own. Use as a context manager, or `close` it.

    `cache` results are kept, by the graph and the content of its inputs: only for graphs of pure steps. Whoever asks
    again gets the same objects; once one of them was modified, or if inputs or results have no digest, it is run anew.
    """

    def __init__(self, *, pool: Pool | None = None, cache: int = 0) -> None:
        """`pool` is used on the session's loop alone. `cache` >= 0."""
        self.pool, self.cache = pool, cache
        self._kept: WeakKeyDictionary[ComputationGraph, OrderedDict[bytes, tuple[bytes, dict[str, Any]]]] = (
            WeakKeyDictionary()
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="byzflow-session", daemon=True)
        self._thread.start()

    def submit(self, graph: ComputationGraph, inputs: Mapping[str, Any] | None = None) -> ExecutionFuture:
        """Start a run. Raises GraphError after `close`."""
        return ExecutionFuture(self.run(self._run(graph, dict(inputs or {}))))

    def run(self, work: Coroutine[Any, Any, R]) -> Future[R]:
        """Start any coroutine on the session's loop. Raises GraphError after `close`."""
        if self._loop.is_closed():
            work.close()
            raise GraphError("this session was closed; make another")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what runs, wait for it, and end the thread. May be called twice."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    async def _run(self, graph: ComputationGraph, inputs: dict[str, Any]) -> dict[str, Any]:
        key = digest(inputs) if self.cache else None
        kept = self._kept.setdefault(graph, OrderedDict())
        if key is not None and key in kept:
            content, outputs = kept.pop(key)
            if digest(outputs) == content:
                kept[key] = content, outputs  # as the last one used
                return dict(outputs)
        outputs = await NodeScheduler(graph, pool=self.pool).run(inputs)
        if key is not None and (now := digest(outputs)):
            kept[key] = now, outputs
            while len(kept) > self.cache:
                kept.popitem(last=False)
        return dict(outputs)

    async def _cancel_all(self) -> None:
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
