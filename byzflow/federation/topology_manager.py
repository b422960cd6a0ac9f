"""A graph, and the mailboxes that it joins, for nodes that run code of their own on threads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import networkx as nx

from byzflow.errors import FederationError, MessageTimeout
from byzflow.federation.loop_thread import LoopThread
from byzflow.federation.message import Message
from byzflow.federation.rewire import without
from byzflow.gossip.effects import NodeId
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.network import SUPERVISOR, LocalNetwork
from byzflow.gossip.topology import Source, Topology, topology

PATIENCE = 60.0  # seconds that a sender waits for room in a mailbox
STOP = "STOP"


class TopologyManager:
    """Who may send to whom, and what was sent. Not on the way of a message: nodes send to mailboxes themselves.

        manager = TopologyManager("run-1")
        manager.link_nodes(["a", "b", "c"], "ring")
        manager.get_neighbors("a")                      # ["b", "c"]
        manager.update_topology("star")                 # from now on, in the middle of a run too

    Any thread may call it. `close` ends its event loop.
    """

    def __init__(self, federation_id: str = "federation") -> None:
        self.federation_id = federation_id
        self.network: LocalNetwork | None = None
        self.sent: Counter[NodeId] = Counter()
        """Messages by sender."""
        self._loop = LoopThread(f"byzflow {federation_id}")
        self._began = time.monotonic()

    def link_nodes(self, node_ids: Sequence[NodeId], graph: Source) -> None:
        """Join these nodes by a graph, anything that `byzflow.gossip.topology` reads. SpecError for less than 2."""
        made = self._read(graph, tuple(node_ids))
        if SUPERVISOR in made.nodes:
            raise FederationError(f"{SUPERVISOR!r} is the id of the federation itself: call the node otherwise")
        self.network = LocalNetwork(made)

    @property
    def graph(self) -> Topology:
        """The graph of now. FederationError before `link_nodes`."""
        return self._linked().graph(None)

    def get_neighbors(self, node_id: NodeId) -> list[NodeId]:
        """To whom a node may send, in the order of the nodes. SpecError for an unknown node."""
        return list(self.graph.neighbours(node_id))

    def update_topology(self, graph: Source) -> None:
        """Another graph of the same nodes, from the next message on; mailboxes keep what they have."""
        nodes = self.graph.nodes
        self._loop.run(self._set(self._read(graph, nodes, self.graph.version + 1)))

    def handle_node_failure(self, node_id: NodeId) -> None:
        """Leave a node out; what it joined is joined again, and the others are told by a message NODE_FAILURE."""
        self._loop.run(self._set(without(self.graph, node_id)))
        self.supervise("NODE_FAILURE", {"failed_node": node_id})

    def publish(self, msg: Message, ids: NodeId | Sequence[NodeId] | None = None, timeout: float = PATIENCE) -> None:
        """A message of a node to neighbours, by default to all; waits while a receiver has no room for it.

        Raises NotANeighbour before anything is sent, MailboxFull after `timeout` seconds, Stopped.
        """
        self._loop.run(self._publish(msg, ids, timeout))

    def broadcast(self, msg: Message) -> None:
        """A message of the federation's to all nodes."""
        self.supervise(msg.header, msg.body)

    def supervise(self, header: str, body: Any, to: Iterable[NodeId] | None = None) -> None:
        """A message of the federation's to any nodes, by default to all; STOP ends what they wait for."""
        self._loop.run(self._supervise(header, body, None if to is None else list(to)))

    def enqueue(self, node_id: NodeId, msg: Message) -> bool:
        """Put a message into a node's mailbox as if it came from its sender; false if it was refused."""
        return self._loop.run(self._enqueue(node_id, msg))

    def receive(
        self, node_id: NodeId, header: str | None = None, round: int | None = None, timeout: float | None = None
    ) -> Message | None:
        """The oldest message to a node, of this header and round if they are given; None if none comes in time."""
        return self._loop.run(self._receive(node_id, header, round, timeout))

    def refused(self, node_id: NodeId) -> dict[NodeId, dict[str, int]]:
        """What a node's mailbox refused: how often, by sender and reason."""
        return {sender: dict(why) for sender, why in self._linked().mailbox(node_id).refused.items()}

    def get_stats(self) -> dict[str, Any]:
        """Messages sent, delivered, refused, serialised, a second, and by sender; and numbers of the graph."""
        if self.network is None:
            return {"total_messages": 0, "node_loads": {}}
        traffic, graph, seconds = self.network.traffic, self.graph, time.monotonic() - self._began
        return {
            "total_messages": traffic.sent,
            "delivered": traffic.delivered,
            "refused": traffic.refused,
            "serialised": traffic.serialised,
            "messages_per_second": traffic.sent / seconds if seconds > 0 else 0.0,
            "node_loads": {node: self.sent[node] for node in graph.nodes},
            "nodes": len(graph),
            "edges": len(graph.edges),
            "topology_version": graph.version,
            "topology_efficiency": nx.global_efficiency(graph.graph().to_undirected()),
        }

    def close(self) -> None:
        """End what waits, and the event loop. May be called twice."""
        if self.network is not None and not self._loop.closed:
            self._loop.run(self._stop(None))
        self._loop.close()

    @property
    def closed(self) -> bool:
        """If it was closed."""
        return self._loop.closed

    # ------------------------------------------------------------------ on the loop

    async def _publish(self, msg: Message, ids: NodeId | Sequence[NodeId] | None, timeout: float) -> None:
        network, sender = self._linked(), msg.sender_id
        graph = network.graph(None)
        to = graph.neighbours(sender) if ids is None else (ids,) if isinstance(ids, str | int) else tuple(ids)
        network.check(graph, sender, to)
        for receiver in to:
            await network.room(sender, receiver, timeout)
        await network.send(sender, to, msg.header, msg, None)
        self.sent[sender] += len(to)

    async def _supervise(self, header: str, body: Any, to: list[NodeId] | None) -> None:
        if header == STOP:
            await self._stop(to)
        else:
            self._linked().supervise(header, Message(header, SUPERVISOR, body), to)

    async def _stop(self, to: list[NodeId] | None) -> None:
        network = self._linked()
        for node in network.topology.nodes if to is None else to:
            network.mailbox(node).stop()

    async def _enqueue(self, node_id: NodeId, msg: Message) -> bool:
        return self._linked().deliver(node_id, Envelope(msg.header, msg.sender_id, msg))

    async def _receive(
        self, node_id: NodeId, header: str | None, round: int | None, timeout: float | None
    ) -> Message | None:
        mailbox = self._linked().mailbox(node_id)
        try:
            taken = await mailbox.take(header, timeout, lambda kept: round in (None, kept.value.round))
        except MessageTimeout:
            return None
        message: Message = taken.value
        return message

    async def _set(self, graph: Topology) -> None:
        self._linked().topology = graph

    # ------------------------------------------------------------------ the inside

    def _linked(self) -> LocalNetwork:
        if self.network is None:
            raise FederationError("no nodes are joined yet: call link_nodes(node_ids, topology)")
        return self.network

    def _read(self, source: Source, nodes: tuple[NodeId, ...], version: int = 0) -> Topology:
        made = topology(source, nodes)
        if not isinstance(made, Topology):
            raise FederationError("nodes that run code of their own have no rounds for a graph to change with")
        named = made if set(made.nodes) == set(nodes) else made.renamed(nodes)
        return Topology(named.nodes, named.edges, named.directed, version, named.weights)
