"""A unit of work for a worker, and the fan-out of many over whatever runs one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from byzflow.errors import GraphError


@dataclass(frozen=True, eq=False)
class SubTask:
    """A call for one worker.

    `affinity` names a capability ("cpu", "gpu") or a worker; the call goes there if one is free, and with
    `require` nowhere else. A worker that dies during the call, or has not answered within `timeout` seconds and is
    ended for that, costs one of `max_retries`: allow them only for functions that may run twice.
    """

    fn: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    affinity: str | None = None
    require: bool = False
    max_retries: int = 0
    timeout: float | None = None

    @property
    def label(self) -> str:
        """Its name, for messages; the function's if it has none."""
        return self.name or str(getattr(self.fn, "__name__", self.fn))


class Pool(Protocol):
    """What a graph needs of a pool of workers."""

    @property
    def size(self) -> int:
        """Number of workers."""

    async def run_subtask(self, subtask: SubTask) -> Any:
        """The result of one call on one worker."""


async def fan_out(run: Callable[[SubTask], Awaitable[Any]], subtasks: Iterable[SubTask], limit: int) -> list[Any]:
    """Results in the order of `subtasks`, at most `limit` (>= 1) of them in flight.

    Subtasks are drawn as there is room for them, so they may be many. The first failure is raised once all others
    are cancelled and have ended. Raises GraphError for a limit below 1.
    """
    if limit < 1:
        raise GraphError(f"subtasks need a limit >= 1 of how many are in flight, got {limit}")
    results: dict[int, Any] = {}
    waiting = enumerate(subtasks)

    async def serve() -> None:
        for place, subtask in waiting:  # one iterator for all: each subtask is drawn once
            results[place] = await run(subtask)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(serve())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [results[place] for place in range(len(results))]
