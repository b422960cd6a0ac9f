"""Where a node's messages may go: to one neighbour, to some, to all, or back to who sent one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from byzflow.errors import FederationError, NotANeighbour
from byzflow.gossip.effects import NodeId
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.network import LocalNetwork
from byzflow.gossip.topology import Topology

if TYPE_CHECKING:
    from byzflow.federation.contexts import NodeContext


class MessageRouter:
    """The neighbours of one node in a graph, and messages to them by a context; without a graph anybody is one."""

    def __init__(self, *, node_id: NodeId, topology: Topology | None = None) -> None:
        """Raises SpecError for a node that is not in the graph."""
        if topology is not None:
            topology.place(node_id)
        self.node_id, self.topology = node_id, topology

    def get_out_neighbors(self) -> list[NodeId]:
        """To whom it may send."""
        return [] if self.topology is None else list(self.topology.neighbours(self.node_id))

    def get_in_neighbors(self) -> list[NodeId]:
        """Whom it hears."""
        return [] if self.topology is None else list(self.topology.in_neighbours(self.node_id))

    def can_send_to(self, node: NodeId) -> bool:
        """If there is an edge."""
        return node != self.node_id and (self.topology is None or node in self.get_out_neighbors())

    async def route_direct(self, to: NodeId, message_type: str, payload: Any, context: NodeContext) -> None:
        """To one. Raises NotANeighbour, and MailboxFull if it takes nothing."""
        self._check([to])
        await context.send(to, message_type, payload)

    async def route_multicast(
        self, to: Sequence[NodeId], message_type: str, payload: Any, context: NodeContext
    ) -> dict[NodeId, Exception]:
        """To some; the errors of those that it did not reach, by node. Raises NotANeighbour before any is sent."""
        each = list(dict.fromkeys(to))
        self._check(each)
        outcomes = await asyncio.gather(
            *(context.send(node, message_type, payload) for node in each), return_exceptions=True
        )
        return {node: error for node, error in zip(each, outcomes, strict=True) if isinstance(error, Exception)}

    async def route_broadcast(self, message_type: str, payload: Any, context: NodeContext) -> dict[NodeId, Exception]:
        """To all neighbours; the errors of those that it did not reach."""
        return await self.route_multicast(self.get_out_neighbors(), message_type, payload, context)

    async def route_reply(
        self, original: Envelope | Mapping[str, Any] | NodeId, message_type: str, payload: Any, context: NodeContext
    ) -> None:
        """To the sender of a message, which may be given as the message, or as who sent it."""
        sender = (
            original.sender
            if isinstance(original, Envelope)
            else original.get("from")
            if isinstance(original, Mapping)
            else original
        )
        if sender is None:
            raise FederationError("the message to reply to has no sender")
        await self.route_direct(sender, message_type, payload, context)

    def _check(self, to: Sequence[NodeId]) -> None:
        if self.topology is not None:
            LocalNetwork.check(self.topology, self.node_id, to)
        elif self.node_id in to:
            raise NotANeighbour(f"{self.node_id} may not send to itself")
