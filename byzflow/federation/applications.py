"""What a node can compute: named pipelines, which are graphs, on a pool of workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

from byzflow.actors import ActorPool, ActorPoolConfig, SubTask
from byzflow.errors import ActorError, GraphError, did_you_mean
from byzflow.graph import ComputationGraph, ExecutionSession, Mailbox, MessageAwareNodeScheduler, NodeScheduler

Metadata = Mapping[str, Any] | None
_MAKING = Lock()  # one for all: an application may travel to another process, a lock may not


class NodeApplication:
    """Pipelines by name. All methods may be called at the same time, from event loops and from threads.

        app = NodeApplication(name="node0", actor_pool=[ActorPoolConfig("thread:", count=4)])
        app.register_pipeline("aggregate", graph)
        outputs = await app.run_pipeline("aggregate", {"gradients": rows})

    The steps of a pipeline run where it is called; the pool's workers live as long as the application.

    Parameters
    ----------
    name : for messages, and in each step's context.
    actor_pool : configurations of a pool of its own, or a pool, which it then ends too; none is needed.
    metadata : what each step finds in its context.
    """

    def __init__(
        self,
        *,
        name: str,
        actor_pool: ActorPool | ActorPoolConfig | Sequence[ActorPoolConfig] | None = None,
        metadata: Metadata = None,
    ) -> None:
        self.name = name
        given = actor_pool
        self.pool = given if isinstance(given, ActorPool) else ActorPool(given) if given else None
        self.metadata = dict(metadata or {})
        self._pipelines: dict[str, tuple[ComputationGraph, dict[str, Any]]] = {}
        self._session: ExecutionSession | None = None

    def register_pipeline(self, name: str, graph: ComputationGraph, *, metadata: Metadata = None) -> None:
        """A graph under a name. Raises GraphError if the name is taken."""
        if name in self._pipelines:
            raise GraphError(f"node {self.name!r} has a pipeline {name!r} already")
        self._pipelines[name] = graph, dict(metadata or {})

    def has_pipeline(self, name: str) -> bool:
        """If there is one of this name."""
        return name in self._pipelines

    def list_pipelines(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._pipelines)

    def scheduler(self, name: str, *, metadata: Metadata = None, mailbox: Mailbox | None = None) -> NodeScheduler:
        """What runs a pipeline: a scheduler of its own each time. With a mailbox its steps may wait for messages.

        Raises GraphError with the known names.
        """
        if name not in self._pipelines:
            raise GraphError(f"node {self.name!r} has no pipeline {name!r}; {did_you_mean(name, self._pipelines)}")
        graph, own = self._pipelines[name]
        context = {"node": self.name, "pipeline": name, **self.metadata, **own, **(metadata or {})}
        pool = None if self.pool is None else _Reached(self.pool, lambda: self._home)
        if mailbox is None:
            return NodeScheduler(graph, pool=pool, metadata=context)
        return MessageAwareNodeScheduler(graph, pool=pool, metadata=context, mailbox=mailbox)

    async def run_pipeline(
        self, name: str, inputs: Mapping[str, Any] | None = None, *, metadata: Metadata = None
    ) -> dict[str, Any]:
        """The outputs by name. Raises GraphError for an unknown pipeline or missing inputs, and what a step raises."""
        return await self.scheduler(name, metadata=metadata).run(inputs)

    def run_pipeline_sync(
        self, name: str, inputs: Mapping[str, Any] | None = None, *, metadata: Metadata = None
    ) -> dict[str, Any]:
        """The same for code without an event loop; where there is one, it stands still meanwhile.

        Raises ActorError where that would wait for ever: on the loop that the given pool belongs to.
        """
        if self.pool is not None and self.pool.loop is not None and self.pool.loop is _running():
            raise ActorError(f"the pool of node {self.name!r} belongs to this event loop: await run_pipeline(...)")
        return self._home.run(self.scheduler(name, metadata=metadata).run(inputs)).result()

    async def shutdown(self) -> None:
        """End the pool and what runs. May be called twice."""
        if self.pool is not None and not (self.pool.loop is not None and self.pool.loop.is_closed()):
            await _Reached(self.pool, lambda: self._home).shutdown()
        if self._session is not None:
            session, self._session = self._session, None
            await asyncio.to_thread(session.close)

    @property
    def _home(self) -> ExecutionSession:
        """The event loop, in a thread, of a pool that has none yet."""
        with _MAKING:
            self._session = self._session or ExecutionSession()
            return self._session

    async def _one(self, name: str, inputs: Mapping[str, Any], metadata: Metadata) -> Any:
        return next(iter((await self.run_pipeline(name, inputs, metadata=metadata)).values()))

    def _one_sync(self, name: str, inputs: Mapping[str, Any], metadata: Metadata) -> Any:
        return next(iter(self.run_pipeline_sync(name, inputs, metadata=metadata).values()))


class HonestNodeApplication(NodeApplication):
    """Of an honest node: the pipelines "honest_gradient" and "aggregate" have methods of their own."""

    GRADIENT_PIPELINE = "honest_gradient"
    AGGREGATION_PIPELINE = "aggregate"

    async def honest_gradient(self, inputs: Mapping[str, Any], *, metadata: Metadata = None) -> Any:
        """The first output of "honest_gradient"."""
        return await self._one(self.GRADIENT_PIPELINE, inputs, metadata)

    def honest_gradient_sync(self, inputs: Mapping[str, Any], *, metadata: Metadata = None) -> Any:
        """The same without an event loop."""
        return self._one_sync(self.GRADIENT_PIPELINE, inputs, metadata)

    async def aggregate(self, *, gradients: Any, metadata: Metadata = None) -> Any:
        """The first output of "aggregate" for these rows."""
        return await self._one(self.AGGREGATION_PIPELINE, {"gradients": gradients}, metadata)

    def aggregate_sync(self, *, gradients: Any, metadata: Metadata = None) -> Any:
        """The same without an event loop."""
        return self._one_sync(self.AGGREGATION_PIPELINE, {"gradients": gradients}, metadata)


class ByzantineNodeApplication(NodeApplication):
    """Of a Byzantine node: the pipeline "attack" has methods of its own."""

    ATTACK_PIPELINE = "attack"

    async def run_attack(self, *, inputs: Mapping[str, Any], metadata: Metadata = None) -> Any:
        """The first output of "attack"."""
        return await self._one(self.ATTACK_PIPELINE, inputs, metadata)

    def run_attack_sync(self, *, inputs: Mapping[str, Any], metadata: Metadata = None) -> Any:
        """The same without an event loop."""
        return self._one_sync(self.ATTACK_PIPELINE, inputs, metadata)


class _Reached:
    """A pool as seen from any event loop: calls go to the loop that it belongs to, and their results come back."""

    def __init__(self, pool: ActorPool, home: Callable[[], ExecutionSession]) -> None:
        self._pool, self._home = pool, home

    @property
    def size(self) -> int:
        return self._pool.size

    async def run_subtask(self, subtask: SubTask) -> Any:
        return await self._there(self._pool.run_subtask(subtask))

    async def shutdown(self) -> None:
        await self._there(self._pool.shutdown())

    async def _there(self, work: Any) -> Any:
        loop = self._pool.loop
        if loop is None:
            return await asyncio.wrap_future(self._home().run(work))
        if loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
