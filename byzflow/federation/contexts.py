"""Where a decentralised node runs, and by what its messages travel."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from byzflow.actors import ActorRef, here, resolve
from byzflow.actors.backend import Backend
from byzflow.errors import FederationError
from byzflow.gossip.effects import NodeId
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.network import Network
from byzflow.graph.messages import Message

if TYPE_CHECKING:
    from byzflow.federation.decentralized import DecentralizedNode

PATIENCE = 30.0  # seconds that a sender waits for room in a mailbox
CHANNEL = "node"


class NodeContext(ABC):
    """One node's way to the others. Made for one node, started and shut down with it."""

    network: Network | None = None
    """What carries its messages; a cluster fills it in."""

    @abstractmethod
    async def start(self, node: DecentralizedNode) -> None:
        """Belong to this node. Raises FederationError without a network."""

    @abstractmethod
    async def send(self, to: NodeId, message_type: str, payload: Any) -> None:
        """One message, to a node of the network, once there is room for it. Raises NotANeighbour, MailboxFull."""

    @abstractmethod
    async def receive(self) -> Envelope:
        """The next message to this node. Raises Stopped when there will be none any more."""

    @abstractmethod
    async def shutdown(self) -> None:
        """Leave. May be called twice."""

    async def ask(self, method: str, *arguments: Any) -> Any:
        """A method of the node where it lives. Raises FederationError where that is here."""
        raise FederationError(f"the node lives here: call its {method}")

    room: int | None = None
    """Bytes of one sender's messages that may wait in the node, where senders are not trusted."""
    elsewhere: bool = False
    """If the node's handlers and pipelines run in another process."""


class InProcessContext(NodeContext):
    """The node runs here; its messages travel by a network: all nodes in one process, or over sockets."""

    def __init__(self, network: Network | None = None) -> None:
        self.network = network
        self._id: NodeId | None = None

    async def start(self, node: DecentralizedNode) -> None:
        """See `NodeContext`."""
        self._id = node.node_id
        self._there()

    async def send(self, to: NodeId, message_type: str, payload: Any) -> None:
        """See `NodeContext`."""
        network, id = self._there()
        if hasattr(network, "room"):
            await network.room(id, to, PATIENCE)
        await network.send(id, [to], message_type, payload, None)

    async def receive(self) -> Envelope:
        """See `NodeContext`."""
        network, id = self._there()
        return await network.mailbox(id).take()

    async def shutdown(self) -> None:
        """See `NodeContext`."""
        if self.network is not None and self._id is not None:
            self.network.mailbox(self._id).stop()

    def _there(self) -> tuple[Network, NodeId]:
        if self.network is None or self._id is None:
            raise FederationError("a node without a network: add it to a DecentralizedCluster, or give its context one")
        return self.network, self._id


class ProcessContext(InProcessContext):
    """The node runs in a process of its own: its application, handlers and state. Only messages pass here.

    What is sent to the process is pickled: handlers and pipelines may be any functions, and a node that they refer to
    is, there, the node itself.
    """

    elsewhere = True

    def __init__(self, network: Network | None = None, backend: str | Backend = "process:") -> None:
        super().__init__(network)
        self._backend = resolve(backend)
        self._ref: ActorRef | None = None
        self._pump: asyncio.Task[None] | None = None

    async def start(self, node: DecentralizedNode) -> None:
        """Start the process, and the node in it."""
        await super().start(node)
        await self._backend.start(str(node.node_id), self._route)
        try:
            number, methods = await self._backend.create(_host_node, (node.node_id, node.describe()), {})
            self._ref = ActorRef(self._backend, number, "DecentralizedNode", methods, True)
            for message_type, handler in node.handlers.items():
                await self._ref.register_message_handler(message_type, handler)
            await self._ref.begin()
        except BaseException:
            await self._backend.close()
            raise
        self._pump = asyncio.create_task(self._deliver())

    async def ask(self, method: str, *arguments: Any) -> Any:
        """A method of the node in its process."""
        if self._ref is None:
            raise FederationError(f"the node was not started, so its {method} cannot be called")
        return await getattr(self._ref, method)(*arguments)

    async def receive(self) -> Envelope:
        """Nothing: messages go to the process."""
        await asyncio.Event().wait()
        raise AssertionError

    async def shutdown(self) -> None:
        """End the process."""
        await super().shutdown()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._backend.close()

    async def _deliver(self) -> None:
        """What came for the node goes to its process."""
        while True:
            envelope = await super().receive()
            await self._backend.deliver(Message(CHANNEL, [envelope.type, envelope.sender, envelope.value]))

    async def _route(self, to: str, message: Message) -> None:
        """What the process sends goes by the network, in this node's name, whatever it says."""
        (receiver, message_type, payload) = message.payload
        await super().send(receiver, message_type, payload)


class WorkerContext(NodeContext):
    """The other end of a `ProcessContext`."""

    async def start(self, node: DecentralizedNode) -> None:
        """See `NodeContext`."""

    async def send(self, to: NodeId, message_type: str, payload: Any) -> None:
        """To the process that started this one, which knows the network."""
        await here().send(str(to), CHANNEL, [to, message_type, payload])

    async def receive(self) -> Envelope:
        """From there."""
        message_type, sender, value = (await here().receive(CHANNEL)).payload
        return Envelope(message_type, sender, value)

    async def shutdown(self) -> None:
        """See `NodeContext`."""


def _host_node(id: NodeId, described: dict[str, Any]) -> DecentralizedNode:
    """In a worker: the node itself."""
    from byzflow.federation.decentralized import DecentralizedNode

    return DecentralizedNode.hosted(id, described)
