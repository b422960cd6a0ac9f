"""Runs a graph: a node starts the moment its inputs are there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from byzflow.errors import GraphError
from byzflow.graph.messages import Mailbox, Message
from byzflow.graph.nodes import ComputationGraph, GraphInput, GraphNode, MessageSource
from byzflow.graph.operator import OpContext
from byzflow.graph.subtask import Pool


class NodeScheduler:
    """Runs a graph, over a pool if there is one; nodes that do not need each other overlap.

    Concurrent runs are safe: nothing of a run is kept on the scheduler.

        results = await NodeScheduler(graph, pool=pool).run({"gradients": rows})
    """

    def __init__(
        self, graph: ComputationGraph, *, pool: Pool | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """`metadata` is passed to each node in its context."""
        self.graph, self.pool = graph, pool
        self.metadata: dict[str, Any] = dict(metadata or {})

    async def run(self, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The graph's outputs by name. Raises GraphError naming the inputs that are missing.

        When a node fails, the others are cancelled and awaited, and its error is raised with the node's name as a
        note.
        """
        given = dict(inputs or {})
        if missing := sorted(self.graph.required_inputs - given.keys()):
            raise GraphError(f"missing graph inputs: {', '.join(missing)}; given: {', '.join(sorted(given)) or 'none'}")
        results: dict[str, Any] = {}
        sorter = self.graph.sorter()

        async def step(node: GraphNode) -> None:
            try:
                resolved = {key: await self._resolve(source, given, results) for key, source in node.inputs.items()}
                context = OpContext(node.name, self.metadata)
                results[node.name] = await node.op.run(resolved, context=context, pool=self.pool)
            except Exception as error:
                error.add_note(f"in graph node {node.name!r}")
                raise
            sorter.done(node.name)
            start_ready()

        def start_ready() -> None:
            for name in sorter.get_ready():
                group.create_task(step(self.graph.nodes[name]), name=name)

        try:
            async with asyncio.TaskGroup() as group:
                start_ready()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        if unfinished := [name for name in self.graph.nodes if name not in results]:
            raise GraphError(f"graph node {unfinished[0]!r} cancelled its own task, so it has no result")
        return {name: results[name] for name in self.graph.outputs}

    async def _resolve(self, source: Any, given: Mapping[str, Any], results: Mapping[str, Any]) -> Any:
        if isinstance(source, GraphInput):
            return given[source.name]
        if isinstance(source, MessageSource):
            raise GraphError(f"an input is the message {source.message_type!r}: use MessageAwareNodeScheduler")
        return results[source]


ParallelScheduler = NodeScheduler
"""The same: independent nodes always overlap."""


class MessageAwareNodeScheduler(NodeScheduler):
    """A scheduler whose nodes may also wait for messages. It belongs to one event loop."""

    def __init__(
        self,
        graph: ComputationGraph,
        *,
        pool: Pool | None = None,
        metadata: Mapping[str, Any] | None = None,
        mailbox: Mailbox | None = None,
    ) -> None:
        """`mailbox` may be shared with others; each message is still taken once."""
        super().__init__(graph, pool=pool, metadata=metadata)
        self.mailbox = Mailbox() if mailbox is None else mailbox
        self.metadata["scheduler"] = self

    def deliver_message(self, message_type: str, payload: Any, sender: str | None = None) -> None:
        """Hand a message to who waits for it, or keep it. Raises MailboxFull. Not from other threads."""
        self.mailbox.put(Message(message_type, payload, sender))

    async def wait_for_message(self, message_type: str, *, timeout: float | None = None) -> Any:
        """The payload of the next message of this type; `mailbox.take` gives its sender too. Raises MessageTimeout."""
        return (await self.mailbox.take(message_type, timeout)).payload

    async def _resolve(self, source: Any, given: Mapping[str, Any], results: Mapping[str, Any]) -> Any:
        value = given[source.name] if isinstance(source, GraphInput) else source
        if not isinstance(value, MessageSource):
            return await super()._resolve(source, given, results)
        payload = await self.wait_for_message(value.message_type, timeout=value.timeout)
        if value.field is None:
            return payload
        if not isinstance(payload, Mapping) or value.field not in payload:
            raise GraphError(f"the message {value.message_type!r} has no field {value.field!r}")
        return payload[value.field]
