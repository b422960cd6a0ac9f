"""A step of a graph: computes where it is, or fans subtasks out over a pool."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from byzflow.errors import GraphError
from byzflow.graph.calls import awaited, called, ended
from byzflow.graph.subtask import Pool, SubTask, fan_out

if TYPE_CHECKING:
    from byzflow.graph.scheduler import MessageAwareNodeScheduler

INFLIGHT = 8  # subtasks a worker, drawn ahead: enough that no worker waits, few enough to hold


@dataclass(frozen=True)
class OpContext:
    """Where a step runs: the name of its node, and what the scheduler was told."""

    node_name: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Operator:
    """Base of steps. Write `compute`, and for a pool `create_subtasks` with `reduce_subtasks`.

    All may be coroutines; plain functions run in a thread, so that they do not hold up the event loop. A step
    whose subtasks need several rounds writes `run_barriered_subtasks` instead.
    """

    name: str = "operator"
    max_subtasks_inflight: int | None = None  # None: eight a worker

    def compute(self, inputs: Mapping[str, Any], *, context: OpContext) -> Any:
        """The result, in one piece."""
        raise NotImplementedError(f"{type(self).__name__} has no compute()")

    def create_subtasks(self, inputs: Mapping[str, Any], *, context: OpContext) -> Iterable[SubTask]:
        """The work in pieces; none of them means `compute`."""
        return ()

    def reduce_subtasks(self, partials: Sequence[Any], inputs: Mapping[str, Any], *, context: OpContext) -> Any:
        """The result, from those of the pieces in their order."""
        raise NotImplementedError(f"{type(self).__name__} has create_subtasks() but no reduce_subtasks()")

    async def run_barriered_subtasks(self, inputs: Mapping[str, Any], *, context: OpContext, pool: Pool) -> Any:
        """The result, by rounds of subtasks."""
        raise NotImplementedError

    async def run(self, inputs: Mapping[str, Any], *, context: OpContext, pool: Pool | None = None) -> Any:
        """The result: over the pool if there is one and the step has pieces, else in one piece."""
        if pool is not None and self._writes("run_barriered_subtasks"):
            return await self.run_barriered_subtasks(inputs, context=context, pool=pool)
        if pool is not None and self._writes("create_subtasks"):
            limit = INFLIGHT * max(1, pool.size) if self.max_subtasks_inflight is None else self.max_subtasks_inflight
            pieces = await outcome(self.create_subtasks, inputs, context=context)
            if partials := await fan_out(pool.run_subtask, pieces, limit):
                return await outcome(self.reduce_subtasks, partials, inputs, context=context)
        return await outcome(self.compute, inputs, context=context)

    def _writes(self, method: str) -> bool:
        return getattr(type(self), method) is not getattr(Operator, method)


async def outcome(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """fn(...): awaited if it is a coroutine, else run in a thread, which a cancelled caller waits for."""
    if inspect.iscoroutinefunction(fn):
        return await awaited(fn(*args, **kwargs))
    running = asyncio.ensure_future(asyncio.to_thread(called, fn, *args, **kwargs))
    try:
        result = await asyncio.shield(running)
    except asyncio.CancelledError:
        await ended(running)  # a thread cannot be stopped; nothing is to be left running
        raise
    return await awaited(result) if inspect.isawaitable(result) else result


class CallableOp(Operator):
    """A function as a step. `input_mapping`: parameter of the function -> input of the node; None: the same names."""

    def __init__(self, fn: Callable[..., Any], *, input_mapping: Mapping[str, str] | None = None) -> None:
        self.fn = fn
        self.name = getattr(fn, "__name__", "callable")
        self.input_mapping = None if input_mapping is None else dict(input_mapping)

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the function is called with. Raises GraphError if the node has no such input."""
        if self.input_mapping is None:
            return dict(inputs)
        for parameter, source in self.input_mapping.items():
            if source not in inputs:
                known = ", ".join(sorted(inputs)) or "none"
                raise GraphError(f"{self.name}({parameter}=) wants the input {source!r}; its inputs: {known}")
        return {parameter: inputs[source] for parameter, source in self.input_mapping.items()}

    async def run(self, inputs: Mapping[str, Any], *, context: OpContext, pool: Pool | None = None) -> Any:
        """fn(**inputs), here."""
        return await outcome(self.fn, **self.arguments(inputs))


class RemoteCallableOp(CallableOp):
    """A function that runs on a worker of the pool, if there is one."""

    async def run(self, inputs: Mapping[str, Any], *, context: OpContext, pool: Pool | None = None) -> Any:
        """fn(**inputs), there."""
        if pool is None:
            return await super().run(inputs, context=context)
        return await pool.run_subtask(SubTask(self.fn, kwargs=self.arguments(inputs), name=self.name))


class MessageTriggerOp(Operator):
    """A step that waits for a message and passes its payload on. Only for `MessageAwareNodeScheduler`."""

    def __init__(self, message_type: str, timeout: float | None = None) -> None:
        """`timeout` in seconds; None waits without limit."""
        if not message_type:
            raise GraphError("a message type cannot be empty")
        self.message_type, self.timeout = message_type, timeout
        self.name = f"message_trigger_{message_type}"

    async def run(self, inputs: Mapping[str, Any], *, context: OpContext, pool: Pool | None = None) -> Any:
        """The payload. Raises MessageTimeout."""
        scheduler: MessageAwareNodeScheduler | None = context.metadata.get("scheduler")
        if scheduler is None:
            raise GraphError(f"node {context.node_name!r} waits for a message: run it by MessageAwareNodeScheduler")
        return await scheduler.wait_for_message(self.message_type, timeout=self.timeout)
