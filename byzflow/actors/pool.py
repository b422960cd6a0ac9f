"""Workers of one or several kinds behind one door: calls go to the first that is free and fit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from byzflow.actors.backend import Backend, resolve
from byzflow.actors.channels import PoolChannel
from byzflow.errors import ActorError, WorkerDied, WorkerGone
from byzflow.graph.messages import Message
from byzflow.graph.subtask import SubTask, fan_out

INFLIGHT = 8  # calls a worker, drawn ahead


@dataclass(frozen=True)
class ActorPoolConfig:
    """`count` workers of one kind.

    `backend` is a URL ("thread:", "process:", "tcp://host:7000", ...) or a function that makes a worker.
    `capabilities` replace what the backend says of itself; `name` begins the workers' names.
    """

    backend: str | Callable[[], Backend]
    count: int = 1
    capabilities: Sequence[str] | None = None
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ActorError."""
        if self.count < 1:
            raise ActorError(f"a pool's configuration needs count >= 1, got {self.count}")


@dataclass
class Worker:
    """A place in the pool; what runs there is replaced when it dies."""

    name: str
    config: ActorPoolConfig
    capabilities: frozenset[str] = frozenset()
    backend: Backend | None = None
    restarts: int = 0
    died: bool = False  # as who used it by `together` found out

    def fits(self, subtask: SubTask) -> bool:
        """If the subtask's affinity, a capability or a name, is this worker's."""
        return subtask.affinity in (None, self.name) or subtask.affinity in self.capabilities


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
        self.workers = {worker.name: worker for worker in _named(given)}
        if len(self.workers) < sum(config.count for config in given):
            raise ActorError("two configurations of the pool have one name: give each its own")
        self._idle: list[Worker] = []
        self._waiting: list[tuple[SubTask, asyncio.Future[Worker]]] = []
        self._starting: asyncio.Lock | None = None
        self._started = self._closed = False
        self._replacing: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self.workers)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it belongs to; None before it started."""
        return self._loop

    async def start(self) -> None:
        """Start all workers; needless before `run_subtask`. If one does not come up, none stays."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ActorError("this pool was shut down; make another")
        if self._loop not in (None, loop):
            raise ActorError("this pool belongs to another event loop; make one pool for each")
        self._loop = loop
        self._starting = self._starting or asyncio.Lock()
        async with self._starting:
            if self._started:
                return
            try:
                async with asyncio.TaskGroup() as group:
                    for worker in self.workers.values():
                        group.create_task(self._bring_up(worker))
            except BaseExceptionGroup as failures:
                await self._close_all()
                raise failures.exceptions[0] from None
            self._idle = list(self.workers.values())
            self._started = True

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
            worker = await self._acquire(subtask)
            try:
                assert worker.backend is not None
                result = await _answered(worker.backend, subtask)
            except WorkerDied as death:
                await self._replaced(worker)
                if isinstance(death, WorkerGone) and not self._closed:
                    continue
                if attempt >= subtask.max_retries or self._closed:
                    raise WorkerDied(
                        f"{subtask.label} died with its worker {worker.name!r} ({death}); "
                        f"tried {attempt + 1} times, allowed retries: {subtask.max_retries}"
                    ) from death
                attempt += 1
            except BaseException:
                self._release(worker)
                raise
            else:
                self._release(worker)
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
                    taken.append(await self._acquire(SubTask(_nothing, affinity=name, require=True, name=label)))
            yield taken
        finally:
            for worker in taken:
                if not worker.died:
                    self._release(worker)
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
        """End all workers; what waits for one raises WorkerDied. May be called twice."""
        self._closed = True
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(WorkerDied("the pool was shut down"))
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await self._close_all()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def _bring_up(self, worker: Worker) -> None:
        backend = resolve(worker.config.backend, **worker.config.options)
        given = worker.config.capabilities
        try:
            await backend.start(worker.name, self.deliver)
        except BaseException:
            await backend.close()  # it may be half there
            raise
        worker.backend, worker.capabilities = backend, backend.capabilities if given is None else frozenset(given)

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
            while worker.backend is None and not self._closed and worker.restarts < self.max_restarts:
                worker.restarts += 1
                with suppress(ActorError, OSError):  # no server there yet, no memory or descriptor left
                    await self._bring_up(worker)
        finally:
            self._release(worker)

    async def _acquire(self, subtask: SubTask) -> Worker:
        if self._closed or not self._has(subtask):
            raise _none_left(subtask)
        for worker in sorted(self._idle, key=lambda each: not each.fits(subtask)):  # stable: who waits longest first
            if worker.backend is not None and (worker.fits(subtask) or not subtask.require):
                self._idle.remove(worker)
                return worker
        future: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        entry = (subtask, future)
        self._waiting.append(entry)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result())  # it came in the last moment
            raise
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def _release(self, worker: Worker) -> None:
        """Hand the worker to who waits longest and may have it, else it is idle."""
        if worker.backend is not None:
            for entry in self._waiting:
                subtask, future = entry
                if not future.done() and (worker.fits(subtask) or not subtask.require):
                    self._waiting.remove(entry)
                    future.set_result(worker)
                    return
        self._idle.append(worker)
        for subtask, future in self._waiting:
            if worker.backend is None and not future.done() and not self._has(subtask):
                future.set_exception(_none_left(subtask))

    def _has(self, subtask: SubTask) -> bool:
        """If there is, or will be again, a worker that may have it."""
        return any(
            (worker.backend is not None or worker not in self._idle) and (worker.fits(subtask) or not subtask.require)
            for worker in self.workers.values()
        )

    async def _close_all(self) -> None:
        backends = [worker.backend for worker in self.workers.values() if worker.backend is not None]
        for worker in self.workers.values():
            worker.backend = None
        await asyncio.gather(*(backend.close() for backend in backends), return_exceptions=True)


def _nothing() -> None:
    """What is called when a worker is only taken."""


async def _answered(backend: Backend, subtask: SubTask) -> Any:
    """The call's result. A worker that does not answer in time is ended, so that the call raises WorkerDied."""
    if subtask.timeout is None:
        return await backend.call(subtask.fn, subtask.args, subtask.kwargs)
    late = False

    async def end() -> None:
        nonlocal late
        await asyncio.sleep(subtask.timeout or 0.0)
        late = True
        await backend.close()

    watch = asyncio.create_task(end())
    try:
        return await backend.call(subtask.fn, subtask.args, subtask.kwargs)
    except WorkerDied:
        if late:
            raise WorkerDied(f"no answer within {subtask.timeout:g} s") from None
        raise
    finally:
        if not late:
            watch.cancel()
        await asyncio.wait([watch])


def _none_left(subtask: SubTask) -> WorkerDied:
    return WorkerDied(f"no worker is left for {subtask.label}: each was replaced too often, or the pool was shut down")


def _named(configs: Sequence[ActorPoolConfig]) -> Iterable[Worker]:
    """Unnamed workers are numbered through by the scheme: thread-0, thread-1, process-0."""
    numbers: Counter[str] = Counter()
    for config in configs:
        base = config.name or (config.backend.partition(":")[0] if isinstance(config.backend, str) else "worker")
        for k in range(config.count):
            number = k if config.name else numbers[base]
            numbers[base] += 1
            yield Worker(f"{base}-{number}", config)
