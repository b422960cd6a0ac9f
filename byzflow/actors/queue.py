"""Who waits for a worker, and who gets it: the first that is free and fit, in the order of asking."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from byzflow.actors.worker import Worker
from byzflow.errors import WorkerDied
from byzflow.graph.subtask import SubTask


class WorkerQueue:
    """Each of these workers is idle, or somebody's until he releases it. Belongs to one event loop."""

    def __init__(self, workers: Collection[Worker]) -> None:
        self._workers = workers
        self._idle: list[Worker] = []
        self._waiting: list[tuple[SubTask, asyncio.Future[Worker]]] = []
        self.closed = False

    def open(self) -> None:
        """All have come up, and are idle."""
        self._idle = list(self._workers)

    def close(self) -> None:
        """Give none away any more; who waits for one hears of it."""
        self.closed = True
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(WorkerDied("the pool was shut down"))

    async def acquire(self, subtask: SubTask) -> Worker:
        """A worker that runs and may have this subtask. Raises WorkerDied if there will be none."""
        if not self._has(subtask):
            raise _none_left(subtask)
        for worker in sorted(self._idle, key=lambda each: not each.fits(subtask)):  # stable: who waits longest first
            if worker.backend is not None and worker.may(subtask):
                self._idle.remove(worker)
                return worker
        future: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        entry = (subtask, future)
        self._waiting.append(entry)
        try:
            worker = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # it came in the last moment
            raise
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
        if self.closed:  # since it was given
            self.release(worker)
            raise _none_left(subtask)
        return worker

    def release(self, worker: Worker) -> None:
        """Hand the worker to who waits longest and may have it, else it is idle."""
        if worker.backend is not None:
            for entry in self._waiting:
                subtask, future = entry
                if not future.done() and worker.may(subtask):
                    self._waiting.remove(entry)
                    future.set_result(worker)
                    return
        self._idle.append(worker)
        for subtask, future in self._waiting:
            if worker.backend is None and not future.done() and not self._has(subtask):
                future.set_exception(_none_left(subtask))

    def _has(self, subtask: SubTask) -> bool:
        """If there is, or will be again, a worker that may have it."""
        return not self.closed and any(
            (worker.backend is not None or worker not in self._idle) and worker.may(subtask) for worker in self._workers
        )


def _none_left(subtask: SubTask) -> WorkerDied:
    return WorkerDied(f"no worker is left for {subtask.label}: each was replaced too often, or the pool was shut down")
