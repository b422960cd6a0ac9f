"""Decentralised nodes that belong together: one network, one graph, started and ended at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from byzflow.errors import FederationError
from byzflow.federation.applications import NodeApplication
from byzflow.federation.contexts import InProcessContext, NodeContext
from byzflow.federation.decentralized import DecentralizedNode
from byzflow.gossip.effects import NodeId
from byzflow.gossip.network import LocalNetwork
from byzflow.gossip.topology import Source, Topology, topology


class DecentralizedCluster:
    """Nodes and the network between them. Two clusters in one process know nothing of each other.

    cluster = DecentralizedCluster("ring")
    for name in "abcd":
        await cluster.add_node(name, application=NodeApplication(name=name))
    async with cluster:
        await cluster["a"].broadcast_message("hello", 1)
    """

    def __init__(self, graph: Source = "full") -> None:
        """`graph`: who hears whom, as `byzflow.gossip.topology` reads it; its nodes are those that are added."""
        self._graph = graph
        self.nodes: dict[NodeId, DecentralizedNode] = {}
        self.network: LocalNetwork | None = None

    async def add_node(
        self,
        node_id: NodeId,
        application: NodeApplication | None = None,
        *,
        topology: Source | None = None,
        context: NodeContext | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> DecentralizedNode:
        """A node, before the cluster starts; `topology` is the cluster's graph, if it was not said yet.

        Raises FederationError for an id that is taken, and after the start.
        """
        if node_id in self.nodes:
            raise FederationError(f"there is a node {node_id!r} already")
        if self.network is not None:
            raise FederationError("nodes are added before the cluster starts")
        if topology is not None:
            self._graph = topology
        node = DecentralizedNode(
            node_id=node_id, application=application, context=context or InProcessContext(), metadata=metadata
        )
        self.nodes[node_id] = node
        return node

    def get_node(self, node_id: NodeId) -> DecentralizedNode | None:
        """A node, if there is one of this id."""
        return self.nodes.get(node_id)

    def __getitem__(self, node_id: NodeId) -> DecentralizedNode:
        """A node. Raises FederationError with the known ids."""
        if node_id not in self.nodes:
            raise FederationError(f"no node {node_id!r}; there are {', '.join(map(str, self.nodes))}")
        return self.nodes[node_id]

    async def start_all(self) -> None:
        """Start all nodes; if one does not come up, none stays."""
        if self.network is not None:
            return
        graph = self._read()
        self.network = LocalNetwork(graph)
        for node in self.nodes.values():
            node.message_router.topology = graph
            if node.context.network is None:
                node.context.network = self.network
        outcomes = await asyncio.gather(*(node.start() for node in self.nodes.values()), return_exceptions=True)
        for error in outcomes:
            if isinstance(error, BaseException):
                await self.shutdown_all()
                raise error

    async def shutdown_all(self) -> None:
        """End all nodes. May be called twice."""
        await asyncio.gather(*(node.shutdown() for node in self.nodes.values()))

    async def remove_node(self, node_id: NodeId) -> None:
        """End one node, and take it out of the graph; the others go on."""
        node = self.nodes.pop(node_id, None)
        if node is None:
            return
        await node.shutdown()
        if self.network is not None and isinstance(self.network.topology, Topology):
            old = self.network.topology
            edges = [edge for edge in old.edges if node_id not in edge]
            kept = tuple(id for id in old.nodes if id != node_id)
            if len(kept) > 1:
                graph = Topology(kept, tuple(edges), old.directed, old.version + 1)
                self.network.topology = graph
                for other in self.nodes.values():
                    other.message_router.topology = graph

    async def __aenter__(self) -> Self:
        await self.start_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.shutdown_all()

    def _read(self) -> Topology:
        ids = tuple(self.nodes)
        if len(ids) < 2:
            raise FederationError(f"a cluster needs at least 2 nodes, got {len(ids)}")
        graph = topology(self._graph, ids)
        if not isinstance(graph, Topology):
            raise FederationError("the graph of a cluster does not change by rounds: it has none")
        return graph if set(graph.nodes) == set(ids) else graph.renamed(ids)
