"""A node with a scheduler of its own: it runs pipelines and handles messages, and nobody tells it when."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from byzflow.errors import FederationError, GraphError, MailboxFull, Stopped, one_line
from byzflow.federation.applications import NodeApplication
from byzflow.federation.contexts import InProcessContext, NodeContext, WorkerContext
from byzflow.federation.router import MessageRouter
from byzflow.gossip.effects import NodeId
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.topology import Topology
from byzflow.graph import Mailbox, Message, MessageSource, MessageTriggerOp
from byzflow.graph.messages import nbytes

Handler = Callable[[NodeId, Any], Any]
LOG = logging.getLogger("byzflow.node")
KEPT = 100  # errors
AT_ONCE = 256  # messages that handlers work on


@dataclass(frozen=True)
class Fault:
    """What a handler, or a pipeline that runs on messages, raised."""

    node: NodeId
    message_type: str
    sender: NodeId | None
    error: str


class DecentralizedNode:
    """One node of a network without a centre.

        node = DecentralizedNode(node_id="a", application=app, context=InProcessContext(network), topology=graph)
        node.register_message_handler("gradient", on_gradient)     # on_gradient(sender, payload), plain or a coroutine
        await node.start()
        await node.broadcast_message("gradient", tensor)
        await node.shutdown()

    Each message is taken once: by the handler of its type, if there is one, else by the step of a pipeline that waits
    for it, else it is kept. What a handler raises is reported in `errors` and logged, and the node goes on.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        application: NodeApplication | None = None,
        context: NodeContext | None = None,
        topology: Topology | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises FederationError for an empty id, SpecError for one that is not in the graph."""
        if not isinstance(node_id, str | int) or node_id == "":
            raise FederationError(f"a node needs an id, a word or a number, got {node_id!r}")
        self.node_id = node_id
        self.application = application or NodeApplication(name=str(node_id))
        self.context = context or InProcessContext()
        self.metadata = {"node_id": node_id, **(metadata or {})}
        self.message_router = MessageRouter(node_id=node_id, topology=topology)
        self.handlers: dict[str, Handler] = {}
        self.errors: deque[Fault] = deque(maxlen=KEPT)
        self.state: dict[str, Any] = {}
        """The node's own, for its handlers."""
        self._mailbox = Mailbox(room=self.context.room, each=True)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running = False

    @property
    def running(self) -> bool:
        """If it was started, and not shut down."""
        return self._running

    async def start(self) -> None:
        """Begin to take messages. May be called twice."""
        if self._running:
            return
        self._running = True
        try:
            await self.context.start(self)
        except BaseException:
            self._running = False
            raise
        if not self.context.elsewhere:
            self._keep(self._serve())

    async def shutdown(self) -> None:
        """End what runs, and leave. May be called twice."""
        if not self._running:
            return
        self._running = False
        others = self._tasks - {asyncio.current_task()}  # a handler may end its own node
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.context.shutdown()
        await self.application.shutdown()

    # ------------------------------------------------------------------ messages

    async def send_message(self, to_node_id: NodeId, message_type: str, payload: Any) -> None:
        """To a neighbour. Raises NotANeighbour, and MailboxFull if it takes nothing for long."""
        self._check_running()
        await self.message_router.route_direct(to_node_id, message_type, payload, self.context)

    async def broadcast_message(self, message_type: str, payload: Any) -> dict[NodeId, Exception]:
        """To all neighbours; the errors of those that it did not reach, by node."""
        self._check_running()
        return await self.message_router.route_broadcast(message_type, payload, self.context)

    async def multicast_message(
        self, to_node_ids: Sequence[NodeId], message_type: str, payload: Any
    ) -> dict[NodeId, Exception]:
        """To some neighbours; the errors of those that it did not reach. Raises NotANeighbour before any is sent."""
        self._check_running()
        return await self.message_router.route_multicast(to_node_ids, message_type, payload, self.context)

    async def reply_message(self, to: Envelope | NodeId, message_type: str, payload: Any) -> None:
        """To who sent a message."""
        self._check_running()
        await self.message_router.route_reply(to, message_type, payload, self.context)

    def register_message_handler(self, message_type: str, handler: Handler) -> None:
        """`handler(sender, payload)` takes all messages of a type from now on; it may be a coroutine function.

        For a node in another process: before it starts.
        """
        if self._running and self.context.elsewhere:
            raise FederationError(f"node {self.node_id} runs in another process: register handlers before it starts")
        self.handlers[message_type] = handler

    async def wait_for_message(self, message_type: str, timeout: float | None = None) -> Any:
        """The payload of the next message of a type that has no handler. Raises MessageTimeout."""
        if self.context.elsewhere:
            return await self.context.ask("wait_for_message", message_type, timeout)
        return (await self._mailbox.take(message_type, timeout)).payload

    def get_neighbors(self) -> list[NodeId]:
        """To whom it may send."""
        return self.message_router.get_out_neighbors()

    def get_in_neighbors(self) -> list[NodeId]:
        """Whom it hears."""
        return self.message_router.get_in_neighbors()

    # ------------------------------------------------------------------ pipelines

    async def execute_pipeline(
        self, pipeline_name: str, inputs: Mapping[str, Any] | None = None, *, triggered_by: str | None = None
    ) -> dict[str, Any]:
        """One run of a pipeline, whose steps may wait for messages; any number may run at the same time.

        Raises GraphError for an unknown name, and what a step raises.
        """
        self._check_running()
        if self.context.elsewhere:
            outputs: dict[str, Any] = await self.context.ask("execute_pipeline", pipeline_name, dict(inputs or {}))
            return outputs
        metadata = self.metadata | ({} if triggered_by is None else {"triggered_by": triggered_by})
        scheduler = self.application.scheduler(pipeline_name, metadata=metadata, mailbox=self._mailbox)
        return await scheduler.run(inputs)

    def run_on_messages(
        self,
        pipeline_name: str,
        inputs: Mapping[str, Any] | None = None,
        then: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        """From now on the pipeline runs whenever the messages that it needs have come; `then` is given its outputs.

        Raises GraphError if it needs none, and if `inputs` are not all of its others.
        """
        self._check_running()
        if missing := self.application.scheduler(pipeline_name).graph.required_inputs - (inputs or {}).keys():
            raise GraphError(f"the pipeline {pipeline_name!r} also needs inputs: {', '.join(sorted(missing))}")
        if not _needs_messages(self.application, pipeline_name):
            raise GraphError(f"the pipeline {pipeline_name!r} waits for no message, so nothing would start it")
        self._keep(self._again(pipeline_name, inputs, then))

    # ------------------------------------------------------------------ the inside

    async def _serve(self) -> None:
        """Take messages as they come; handlers work side by side, and begin in the order of the messages."""
        working: dict[asyncio.Task[Any], int] = {}  # and the bytes of its message
        room = None if self.context.room is None else self.context.room * max(1, len(self.get_in_neighbors()))
        while True:
            while len(working) >= AT_ONCE or (room is not None and sum(working.values()) >= room):
                await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            try:
                envelope = await self.context.receive()
            except Stopped:
                return
            handler = self.handlers.get(envelope.type)
            if handler is None:
                await self._put(envelope)
                continue
            task = self._keep(self._handle(handler, envelope))
            working[task] = 0 if room is None else nbytes(envelope.value)
            task.add_done_callback(working.pop)

    async def _put(self, envelope: Envelope) -> None:
        try:
            self._mailbox.put(Message(envelope.type, envelope.value, str(envelope.sender)))
        except MailboxFull as error:
            self._report(envelope.type, envelope.sender, error)

    async def _handle(self, handler: Handler, envelope: Envelope) -> None:
        try:
            outcome = handler(envelope.sender, envelope.value)
            if inspect.isawaitable(outcome):
                await outcome
        except Exception as error:
            self._report(envelope.type, envelope.sender, error)

    async def _again(self, name: str, inputs: Mapping[str, Any] | None, then: Callable[..., Any] | None) -> None:
        while True:
            try:
                outputs = await self.execute_pipeline(name, inputs, triggered_by="messages")
                outcome = None if then is None else then(outputs)
                if inspect.isawaitable(outcome):
                    await outcome
            except Exception as error:
                self._report(name, None, error)

    def _report(self, message_type: str, sender: NodeId | None, error: Exception) -> None:
        self.errors.append(Fault(self.node_id, message_type, sender, one_line(error)))
        LOG.error("node %s, %s from %s: %s", self.node_id, message_type, sender, one_line(error))

    def _keep(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _check_running(self) -> None:
        if not self._running:
            raise FederationError(f"node {self.node_id} is not running: start it first")

    # ------------------------------------------------------------------ a node in another process

    def describe(self) -> dict[str, Any]:
        """What the same node is made of in another process."""
        return {
            "application": self.application,
            "topology": self.message_router.topology,
            "metadata": self.metadata,
            "state": self.state,
        }

    @classmethod
    def hosted(cls, id: NodeId, described: dict[str, Any]) -> DecentralizedNode:
        """The node in a worker's process, where references to it lead from now on."""
        state = described.pop("state")
        node = cls(node_id=id, context=WorkerContext(), **described)
        node.state.update(state)
        _HOSTED[id] = node
        return node

    async def begin(self) -> None:
        """`start`, as a worker is asked to."""
        await self.start()

    async def faults(self) -> list[Fault]:
        """The errors so far, wherever the node is."""
        if self.context.elsewhere:
            found: list[Fault] = await self.context.ask("faults")
            return found
        return list(self.errors)

    async def get_state(self) -> dict[str, Any]:
        """A copy of the node's state, wherever it is."""
        if self.context.elsewhere and self._running:
            found: dict[str, Any] = await self.context.ask("get_state")
            return found
        return dict(self.state)

    def __reduce__(self) -> tuple[Any, ...]:
        """Handlers that refer to their node find it again where they run."""
        return _hosted, (self.node_id,)


_HOSTED: dict[NodeId, DecentralizedNode] = {}  # of a worker's process, which has one


def _hosted(id: NodeId) -> DecentralizedNode:
    if id not in _HOSTED:
        raise FederationError(f"node {id} is not in this process, so it cannot be referred to here")
    return _HOSTED[id]


def _needs_messages(application: NodeApplication, name: str) -> bool:
    nodes = application.scheduler(name).graph.nodes.values()
    return any(
        isinstance(node.op, MessageTriggerOp)
        or any(isinstance(source, MessageSource) for source in node.inputs.values())
        for node in nodes
    )
