"""One worker of a pool: what it is to be, what runs there now, and the calls on it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from byzflow.actors.backend import Backend, resolve
from byzflow.actors.host import Route
from byzflow.errors import ActorError, WorkerDied, WorkerGone
from byzflow.graph.subtask import SubTask


@dataclass(frozen=True)
class ActorPoolConfig:
    """`count` workers of one kind.

    `backend` is a URL ("thread:", "process:", "tcp://host:7000", ...) or a function that makes a worker; a worker
    itself, not started, if there is to be only one.
    `capabilities` replace what the backend says of itself; `name` begins the workers' names.
    """

    backend: str | Backend | Callable[[], Backend]
    count: int = 1
    capabilities: Sequence[str] | None = None
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ActorError."""
        if self.count < 1:
            raise ActorError(f"a pool's configuration needs count >= 1, got {self.count}")
        if isinstance(self.capabilities, str):
            raise ActorError(
                f"capabilities are a list of words, got {self.capabilities!r}; write [{self.capabilities!r}]"
            )
        if isinstance(self.backend, Backend) and self.count > 1:
            raise ActorError(
                f"one {type(self.backend).__name__} cannot be {self.count} workers; give a URL, or a function "
                f"that makes one"
            )


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

    def may(self, subtask: SubTask) -> bool:
        """If the subtask can be given to it: it fits, or that is only a wish."""
        return not subtask.require or self.fits(subtask)

    async def start(self, route: Route) -> None:
        """Bring up what runs here. Raises ActorError."""
        backend = resolve(self.config.backend, **self.config.options)
        given = self.config.capabilities
        try:
            await backend.start(self.name, route)
        except BaseException:
            await backend.close()  # it may be half there
            raise
        self.backend, self.capabilities = backend, backend.capabilities if given is None else frozenset(given)

    async def call(self, subtask: SubTask) -> Any:
        """The call's result. A worker that does not answer in time is ended, so that the call raises WorkerDied."""
        backend = self.backend
        if backend is None:
            raise WorkerGone(f"worker {self.name!r} is not running")
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


def named(configs: Sequence[ActorPoolConfig]) -> Iterator[Worker]:
    """Unnamed workers are numbered through by the scheme: thread-0, thread-1, process-0."""
    numbers: Counter[str] = Counter()
    for config in configs:
        base = config.name or (config.backend.partition(":")[0] if isinstance(config.backend, str) else "worker")
        for k in range(config.count):
            number = k if config.name else numbers[base]
            numbers[base] += 1
            yield Worker(f"{base}-{number}", config)
