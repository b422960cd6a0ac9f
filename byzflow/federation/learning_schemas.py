"""Federations by their shape: star, ring, mesh, k-regular, clusters; of your own nodes, or of models and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from byzflow.errors import FederationError, Stopped
from byzflow.federation.federated_base import FederatedBase
from byzflow.federation.federation import Federation
from byzflow.federation.loop_thread import LoopThread
from byzflow.federation.own_thread import on_own_thread
from byzflow.federation.published import Published
from byzflow.federation.publishing_learner import PublishingLearner
from byzflow.federation.report import History
from byzflow.federation.topology_manager import TopologyManager
from byzflow.federation.virtual_node import VirtualNode
from byzflow.gossip.cluster import Clusters, Groups
from byzflow.gossip.effects import NodeId
from byzflow.gossip.topology import Source

Template = Callable[..., Any]


class LearningSchema(FederatedBase):
    """Clients client_0, client_1, ..., one for each role.

    With a template each client's own `train` runs, as in `FederatedBase`. Without one the clients learn by rounds:
    `client_args` then has `model`, a function that makes a module, `data`, one (x, y) or loader a client, and settings
    of `LearnerNode`; `server_args` (`rules` where there is no server) has `rounds`, and settings of `Federation`, such
    as defence and f. A client whose role has no "train" receives and never contributes.
    """

    def __init__(
        self,
        client_template: Template | None = None,
        roles: Sequence[str] = ("train", "train"),
        config: Any = None,
        log: Any = None,
        *,
        topology: Source | Clusters,
        first: Sequence[VirtualNode] = (),
        resources: Any = "uniform",
        is_tune: bool = False,
        bundle_offset: int = 0,
    ) -> None:
        learns = client_template is None
        clients = [
            VirtualNode(
                partial(self._learner, place) if client_template is None else client_template,
                f"client_{place}",
                f"{role}-eval" if learns and "eval" not in role.split("-") else role,
                config,
                log,
            )
            for place, role in enumerate(roles)
        ]
        super().__init__([*first, *clients], topology, config, resources, is_tune, bundle_offset)
        self._clients, self._learns = clients, learns
        self._client_args: Mapping[str, Any] = {}
        self._made: dict[NodeId, PublishingLearner] = {}
        self._published = {node.id: Published(node.id) for node in clients}
        self._loop: LoopThread | None = None
        self.federation: Federation | None = None
        """What runs the rounds of clients without a template; None before."""

    def run_rounds(self, rules: Mapping[str, Any], client_args: Mapping[str, Any], blocking: bool) -> History | None:
        """Rounds of clients that learn; their history once they end. See the class for the arguments."""
        if self.running:
            raise FederationError("the nodes are training: wait for the end, or call stop()")
        rules = dict(rules)
        rounds = rules.pop("rounds", 10)
        if missing := {"model", "data"} - client_args.keys():
            raise FederationError(f"client_args needs {' and '.join(sorted(missing))}, or give a client_template")
        if len(client_args["data"]) != len(self._clients):
            raise FederationError(f"{len(self._clients)} clients need as many data, got {len(client_args['data'])}")
        self._client_args, self._stopped = client_args, False
        for node in self._clients:
            node.handle = None
            self._published[node.id].resume()
        self.federation = federation = Federation(self._clients, self._topology, **rules)
        self._loop = loop = LoopThread(self._name)

        def whole() -> History:
            try:
                loop.run(_rounds(federation, rounds))
            except (Stopped, FederationError):
                if not self._stopped:
                    raise
            finally:
                for node in self._clients:
                    self._published[node.id].end()
                    node.handle = self._made.get(node.id)  # what was learned stays, to be tested and pulled
            return federation.history

        self._runtime_remotes = [on_own_thread(f"{self._name}/rounds", whole)]
        history: History | None = self.wait()[0] if blocking else None
        return history

    def stop(self) -> None:
        """End the run. In any state, and again too."""
        super().stop()
        if self._loop is not None and not self._loop.closed:
            if self.federation is not None and self.running:
                self._loop.run(self.federation.stop())
                self.wait()
            self._loop.close()

    def _learner(self, place: int) -> PublishingLearner:
        own = {name: each for name, each in self._client_args.items() if name not in ("model", "data")}
        made = self._client_args["model"]()
        published = self._published[self._clients[place].id]
        learner = PublishingLearner(published, made, self._client_args["data"][place], **{"seed": place, **own})
        self._made[self._clients[place].id] = learner
        return learner

    def _pull(self, node: VirtualNode, timeout: float | None) -> dict[str, Any] | None:
        return self._published[node.id].pull(None, timeout) if self._learns else super()._pull(node, timeout)


class StarFederatedLearningSchema(LearningSchema):
    """Clients and a server. With templates the server's program is another node's, role "aggregate"."""

    def __init__(
        self,
        server_template: Template | None = None,
        client_template: Template | None = None,
        roles: Sequence[str] = ("train", "train"),
        config: Any = None,
        log: Any = None,
        server_id: str = "server",
        **placement: Any,
    ) -> None:
        """Raises FederationError for only one template."""
        if (server_template is None) != (client_template is None):
            raise FederationError("a star needs both a server_template and a client_template, or neither")
        self.server_id = server_id
        first = [] if server_template is None else [VirtualNode(server_template, server_id, "aggregate", config, log)]
        super().__init__(client_template, roles, config, log, topology="star", first=first, **placement)

    def train(  # type: ignore[override]
        self,
        server_args: Mapping[str, Any] | None = None,
        client_args: Mapping[str, Any] | None = None,
        blocking: bool = False,
    ) -> Any:
        """The programs of server and clients, each with its arguments; or rounds, see `LearningSchema`."""
        server, client = dict(server_args or {}), dict(client_args or {})
        if self._learns:
            return self.run_rounds(server, client, blocking)
        return self.run_nodes(lambda node: server if node.id == self.server_id else client, blocking)


class _PeerSchema(LearningSchema):
    """Clients without a server."""

    def train(  # type: ignore[override]
        self,
        client_args: Mapping[str, Any] | None = None,
        blocking: bool = False,
        rules: Mapping[str, Any] | None = None,
    ) -> Any:
        """The clients' programs, all with the same arguments; or rounds, see `LearningSchema`."""
        if self._learns:
            return self.run_rounds(rules or {}, client_args or {}, blocking)
        return self.run_nodes(lambda node: client_args or {}, blocking)


class RingFederatedLearningSchema(_PeerSchema):
    """Each client with the one before it and the one after it."""

    def __init__(self, client_template: Template | None = None, *args: Any, **settings: Any) -> None:
        super().__init__(client_template, *args, topology="ring", **settings)


class MeshFederatedLearningSchema(_PeerSchema):
    """Each client with each."""

    def __init__(self, client_template: Template | None = None, *args: Any, **settings: Any) -> None:
        super().__init__(client_template, *args, topology="full", **settings)


class KRegularFederatedLearningSchema(_PeerSchema):
    """Each client with k others, 4 unless there are fewer."""

    def __init__(
        self, client_template: Template | None = None, *args: Any, k: int | None = None, **settings: Any
    ) -> None:
        super().__init__(client_template, *args, topology="k_regular" if k is None else f"k_regular:{k}", **settings)


class ClusterFederatedLearningSchema(_PeerSchema):
    """Clients in clusters, see `Clusters`. With a template each talks to those of its own, and heads to heads."""

    def __init__(
        self, client_template: Template | None = None, *args: Any, clusters: Clusters | None = None, **settings: Any
    ) -> None:
        super().__init__(client_template, *args, topology=clusters or Clusters(), **settings)

    def create_topology_manager(self) -> TopologyManager:
        """Of clusters that stay as they begin."""
        assert isinstance(self._topology, Clusters)
        groups = self._topology.initial(self.node_ids)
        shape = Groups(groups, tuple(group[0] for group in groups), self._topology.period)
        return self.joined(shape.graph(self.node_ids))


async def _rounds(federation: Federation, rounds: int) -> None:
    async with federation:
        await federation.run(rounds)
