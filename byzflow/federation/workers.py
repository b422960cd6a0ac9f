"""A few workers on which many nodes live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from byzflow.actors.backend import Backend, resolve
from byzflow.actors.ref import ActorRef, spawn
from byzflow.errors import FederationError, WorkerDied


class Workers:
    """`count` workers of one kind, started when the first node comes, each new node on the one that has fewest.

        async with Workers("process:", 4) as workers:
            nodes = [VirtualNode(MyNode, k, pool=workers) for k in range(100)]

    When a worker dies all its nodes die with it, and those that are made anew come to a fresh worker in its place.
    `options` are the backend's. Belongs to one event loop.
    """

    def __init__(self, backend: str | Callable[[], Backend] = "process:", count: int = 1, **options: Any) -> None:
        """Raises FederationError for a count below 1."""
        if count < 1:
            raise FederationError(f"workers need count >= 1, got {count}")
        self._backend, self._options = backend, options
        self._places: list[Backend | None] = [None] * count
        self.nodes = [0] * count
        """How many nodes live on each worker."""
        self._where: dict[ActorRef, tuple[int, Backend]] = {}
        self._starting = [asyncio.Lock() for _ in range(count)]

    def __len__(self) -> int:
        return len(self._places)

    async def spawn(self, template: Any, *args: Any, **kwargs: Any) -> ActorRef:
        """template(*args, **kwargs) on a worker. Raises what it raises, and ActorError if no worker comes up."""
        place = min(range(len(self)), key=self.nodes.__getitem__)
        self.nodes[place] += 1
        try:
            worker = await self._worker(place)
            try:
                made = await spawn(template, *args, backend=worker, **kwargs)
            except WorkerDied:  # long ago perhaps, and nobody noticed
                await self._bury(place, worker)
                worker = await self._worker(place)
                made = await spawn(template, *args, backend=worker, **kwargs)
        except BaseException:
            self.nodes[place] -= 1
            raise
        self._where[made] = place, worker
        return made

    async def end(self, node: ActorRef, dead: bool = False) -> None:
        """Forget a node; if its worker is `dead`, or hangs, that ends too. No error for one that is gone."""
        if node in self._where:
            place, worker = self._where.pop(node)
            self.nodes[place] -= 1
            await (self._bury(place, worker) if dead else node.aclose())

    async def close(self) -> None:
        """End all workers, and with them their nodes. May be called twice."""
        for place, worker in enumerate(self._places):
            if worker is not None:
                await self._bury(place, worker)

    async def __aenter__(self) -> Workers:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def _worker(self, place: int) -> Backend:
        async with self._starting[place]:
            worker = self._places[place]
            if worker is None:
                worker = resolve(self._backend, **self._options)
                await worker.start(f"worker-{place}")
                self._places[place] = worker
            return worker

    async def _bury(self, place: int, worker: Backend) -> None:
        async with self._starting[place]:
            if self._places[place] is worker:
                self._places[place] = None
        await worker.close()
