"""Workers of one or several kinds behind one door: calls go to the first that is free and fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from byzflow.actors.channels import PoolChannel
from byzflow.actors.queue import WorkerQueue
from byzflow.actors.worker import ActorPoolConfig, Worker, named
from byzflow.errors import ActorError, WorkerDied, WorkerGone
from byzflow.graph.messages import Message
from byzflow.graph.subtask import SubTask, fan_out

INFLIGHT = 8  # calls a worker, drawn ahead


class ActorPool:
    """Runs calls on workers that start when they are first needed, once, and are replaced when they die.

        async with ActorPool([ActorPoolConfig("thread:", count=4)]) as pool:
            results = await pool.run_many([SubTask(work, (k,)) for k in range(100)])

    A pool belongs to one event loop. `max_restarts` bounds how often one worker is replaced.
    """

    def __init__(self, configs: ActorPoolConfig | Sequence[ActorPoolConfig], *, max_restarts: int = 3) -> None:
        """Raises ActorError without a configuration, or if two workers would have one name."""
        given = [configs] if isinstance(configs, ActorPoolConfig) else list(configs)
        if not given:
            raise ActorError("a pool needs at least one ActorPoolConfig")
        self.max_restarts = max_restarts
        self.workers = {worker.name: worker for worker in named(given)}
        if len(self.workers) < sum(config.count for config in given):
            raise ActorError("two configurations of the pool have one name: give each its own")
        self._queue = WorkerQueue(self.workers.values())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = False
        self._starting = asyncio.Lock()
        self._coming: asyncio.Task[None] | None = None  # all workers for the first time
        self._replacing: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self.workers)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it belongs to; None before it started."""
        return self._loop

    async def start(self) -> None:
        """Start all workers; needless before `run_subtask`. If one does not come up, none stays.

        Raises ActorError for a pool that was shut down, or that belongs to another event loop, and what a worker
        raises that does not come up.
        """
        loop = asyncio.get_running_loop()
        if self._queue.closed:
            raise ActorError("this pool was shut down; make another")
        if self._loop not in (None, loop):
            raise ActorError("this pool belongs to another event loop; make one pool for each")
        self._loop = loop
        if self._started:
            return
        async with self._starting:
            if self._queue.closed:
                raise WorkerDied("the pool was shut down")
            if self._started:
                return
            self._coming = loop.create_task(self._come())
            try:
                await self._coming
            except asyncio.CancelledError:
                if self._queue.closed and not _cancelled_here():
                    raise WorkerDied("the pool was shut down") from None
                raise

    async def run_subtask(self, subtask: SubTask) -> Any:
        """The result of one call. Raises what it raises, WorkerDied when its retries are used up.

        A worker that had ended before it was asked is replaced, and that costs no retry: the call never ran. Raises
        ActorError at once if the subtask requires what no worker of the pool has.
        """
        await self.start()
        if subtask.require and not any(worker.fits(subtask) for worker in self.workers.values()):
            have = sorted({*self.workers, *(c for worker in self.workers.values() for c in worker.capabilities)})
            raise ActorError(f"no worker for {subtask.affinity!r}; the pool has: {', '.join(have)}")
        attempt = 0
        while True:
            worker = await self._queue.acquire(subtask)
            try:
                result = await worker.call(subtask)
            except WorkerDied as death:
                await self._replaced(worker)
                if isinstance(death, WorkerGone) and not self._queue.closed:
                    continue
                if attempt >= subtask.max_retries or self._queue.closed:
                    raise WorkerDied(
                        f"{subtask.label} died with its worker {worker.name!r} ({death}); "
                        f"tried {attempt + 1} times, allowed retries: {subtask.max_retries}"
                    ) from death
                attempt += 1
            except BaseException:
                self._queue.release(worker)
                raise
            else:
                self._queue.release(worker)
                return result

    async def run_many(self, subtasks: Iterable[SubTask], *, limit: int | None = None) -> list[Any]:
        """Results in order; on the first failure the others are cancelled and awaited, and it is raised."""
        return await fan_out(self.run_subtask, subtasks, INFLIGHT * self.size if limit is None else limit)

    @asynccontextmanager
    async def together(self, names: Iterable[str], label: str) -> AsyncIterator[list[Worker]]:
        """These workers at once, each free of other calls; one that is marked `died` is replaced in the end.

        They are taken one by one in the pool's order, so that two that want the same ones never wait for each other.
        Raises ActorError for a name that is not there, WorkerDied for a worker that is not replaced any more.
        """
        await self.start()
        wanted = set(names)
        if missing := sorted(wanted - self.workers.keys()):
            raise ActorError(f"no worker {missing[0]!r} for {label}; the pool has: {', '.join(self.workers)}")
        taken: list[Worker] = []
        try:
            for name in self.workers:
                if name in wanted:
                    wish = SubTask(_nothing, affinity=name, require=True, name=label)
                    taken.append(await self._queue.acquire(wish))
            yield taken
        finally:
            for worker in taken:
                if not worker.died:
                    self._queue.release(worker)
            for worker in taken:
                if worker.died:
                    await self._replaced(worker)

    async def open_channel(self, name: str) -> PoolChannel:
        """A channel that connects all workers of the pool."""
        await self.start()
        return PoolChannel(self, name)

    async def deliver(self, to: str, message: Message) -> None:
        """Carry a message to a worker. Raises ActorError if there is none of that name."""
        worker = self.workers.get(to)
        if worker is None or worker.backend is None:
            raise ActorError(f"no worker {to!r} to send to; the pool has: {', '.join(self.workers)}")
        await worker.backend.deliver(message)

    async def shutdown(self) -> None:
        """End all workers, to the end also if the caller is cancelled; what waits for one raises WorkerDied.

        May be called twice, and while the pool starts.
        """
        self._queue.close()
        self._ending = self._ending or asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.shutdown()

    async def _come(self) -> None:
        """All workers, or none."""
        try:
            async with asyncio.TaskGroup() as group:
                for worker in self.workers.values():
                    group.create_task(worker.start(self.deliver))
        except BaseException as error:
            await self._close_all()
            raise (error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error) from None
        self._queue.open()
        self._started = True

    async def _replaced(self, worker: Worker) -> None:
        """Replace it, to the end also if the caller is cancelled."""
        replacing = asyncio.create_task(self._replace(worker))
        self._replacing.add(replacing)
        replacing.add_done_callback(self._replacing.discard)
        await asyncio.shield(replacing)

    async def _replace(self, worker: Worker) -> None:
        """A fresh worker in the place of a dead one; it stays empty once that was tried too often."""
        dead, worker.backend, worker.died = worker.backend, None, False
        try:
            if dead is not None:
                await dead.close()
            while worker.backend is None and not self._queue.closed and worker.restarts < self.max_restarts:
                worker.restarts += 1
                with suppress(ActorError, OSError):  # no server there yet, no memory or descriptor left
                    await worker.start(self.deliver)
        finally:
            self._queue.release(worker)

    async def _end(self) -> None:
        if self._coming is not None and not self._coming.done():
            self._coming.cancel()
            await asyncio.wait([self._coming])
        if self._replacing:
            await asyncio.wait(self._replacing)
        await self._close_all()

    async def _close_all(self) -> None:
        backends = [worker.backend for worker in self.workers.values() if worker.backend is not None]
        for worker in self.workers.values():
            worker.backend = None
        await asyncio.gather(*(backend.close() for backend in backends), return_exceptions=True)


def _cancelled_here() -> bool:
    """If somebody cancelled the task that runs this."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _nothing() -> None:
    """What is called when a worker is only taken."""
