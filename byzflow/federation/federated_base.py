"""A federation of nodes that run code of their own, each on a thread; base of federations with another coordination."""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any, Self

from byzflow.errors import FederationError
from byzflow.federation.loop_thread import LoopThread
from byzflow.federation.own_thread import on_own_thread
from byzflow.federation.resources import Resources, plan
from byzflow.federation.topology_manager import TopologyManager
from byzflow.federation.virtual_node import VirtualNode
from byzflow.gossip.effects import NodeId
from byzflow.gossip.topology import Source

IDLE, RUNNING, STOPPED = "IDLE", "RUNNING", "STOPPED"


class FederatedBase:
    """Virtual nodes of `FederatedNode`s and a graph; `train` builds them, joins them, and runs their programs.

        nodes = [VirtualNode(Client, f"client_{k}") for k in range(4)]
        with FederatedBase(nodes, "ring") as federation:
            metrics = federation.train(blocking=True, rounds=10)
            newest = federation.pull_version("client_0")

    Nothing is built before it is needed. An error in one node's program ends the run, and is raised where its end is
    waited for. Subclasses may coordinate otherwise, in a `train` of their own.

    Parameters
    ----------
    nodes : `VirtualNode`s with ids of their own.
    topology : anything that `byzflow.gossip.topology` reads; with "star" the first node is the centre.
    config : of the owner's; its `FEDERATION_ID`, if it has one, names the federation.
    resources : "uniform" or "random" shares of this machine, see `byzflow.federation.resources.plan`; or a plan; or a
        placement group, for virtual nodes that live on Ray.
    is_tune, bundle_offset : kept for subclasses.

    Raises
    ------
    FederationError : for no nodes, two of one id, and a plan that does not fit.
    """

    def __init__(
        self,
        nodes: Sequence[VirtualNode],
        topology: Any,
        config: Any = None,
        resources: Any = "uniform",
        is_tune: bool = False,
        bundle_offset: int = 0,
    ) -> None:
        self._nodes, self._topology, self.config = list(nodes), topology, config
        if not self._nodes:
            raise FederationError("a federation needs at least one node")
        if len(set(self.node_ids)) < len(self._nodes):
            twice = next(id for place, id in enumerate(self.node_ids) if id in self.node_ids[:place])
            raise FederationError(f"two nodes have the id {twice!r}: give each its own")
        self._name = str(getattr(config, "FEDERATION_ID", None) or f"federation-{uuid.uuid4().hex[:8]}")
        self._pg = plan(len(self._nodes), split=resources) if isinstance(resources, str) else resources
        self._is_tune, self._bundle_offset = is_tune, bundle_offset
        self._tp_manager: TopologyManager | None = None
        self._runtime_remotes: list[Future[Any]] = []
        self._building: LoopThread | None = None
        self._stopped = False

    # ------------------------------------------------------------------ what it is

    @property
    def nodes(self) -> list[VirtualNode]:
        """The virtual nodes, in their order."""
        return list(self._nodes)

    @property
    def node_ids(self) -> list[NodeId]:
        """All nodes, in their order."""
        return [node.id for node in self._nodes]

    @property
    def num_nodes(self) -> int:
        """How many there are."""
        return len(self._nodes)

    @property
    def state(self) -> str:
        """IDLE, RUNNING or STOPPED; another `train` leads out of STOPPED."""
        return RUNNING if self.running else STOPPED if self._stopped else IDLE

    @property
    def running(self) -> bool:
        """If a node's program runs."""
        return any(not each.done() for each in self._runtime_remotes)

    @property
    def tp_manager(self) -> TopologyManager | None:
        """Who may send to whom; None before the first run, and after `stop`."""
        return self._tp_manager

    def __getitem__(self, id: NodeId) -> VirtualNode:
        """A virtual node. Raises FederationError with the known ids."""
        for node in self._nodes:
            if node.id == id:
                return node
        raise FederationError(f"no node {id!r}; there are {', '.join(map(str, self.node_ids))}")

    @property
    def resources(self) -> dict[NodeId, dict[str, float]]:
        """CPUs and GPUs that are planned for each node; none where a placement group says it."""
        bundles = self._pg.bundles if isinstance(self._pg, Resources) else ()
        shares = [{"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {}) for each in bundles]
        return dict(zip(self.node_ids, shares, strict=False))

    # ------------------------------------------------------------------ training and testing

    def train(self, *args: Any, blocking: bool = False, **train_args: Any) -> Any:
        """Run `train(**train_args)` of all nodes that train or aggregate; see `run_nodes`."""
        if args:
            raise FederationError("train takes its arguments by name")
        return self.run_nodes(lambda node: train_args, blocking)

    def run_nodes(self, arguments: Callable[[VirtualNode], Mapping[str, Any]], blocking: bool) -> list[Any] | None:
        """Run the programs of all nodes that train or aggregate, each with its arguments.

        With `blocking` their metrics in the order of the nodes, else None at once. Raises FederationError while a run
        is under way.
        """
        if self.running:
            raise FederationError("the nodes are training: wait for the end, or call stop()")
        self._stopped = False
        for place, node in enumerate(self._nodes, start=1 + self._bundle_offset):
            self.build(node, place)
        self._close_manager()
        self._tp_manager = self.create_topology_manager()
        for node in self._nodes:
            node.handle._setup_train()
        self._runtime_remotes = [
            on_own_thread(f"{self._name}/{node.id}", node.handle._train, **arguments(node))
            for node in self._nodes
            if {"train", "aggregate"} & set(node.role.split("-"))
        ]
        for each in self._runtime_remotes:
            each.add_done_callback(self._ended_one)
        return self.wait() if blocking else None

    def wait(self, timeout: float | None = None) -> list[Any]:
        """The metrics of all programs of this run once they ended. Raises what one of them raised, and TimeoutError."""
        done, left = wait(self._runtime_remotes, timeout, return_when=FIRST_EXCEPTION)
        for each in done:
            each.result()
        if left:
            raise TimeoutError(f"{len(left)} nodes still train after {timeout:g} s")
        return [each.result() for each in self._runtime_remotes]

    def test(self, phase: str, **kwargs: Any) -> list[Any]:
        """What `test(phase, ...)` of all nodes with that role gives, in the order of the nodes."""
        if phase not in ("train", "eval", "test"):
            raise FederationError(f"a phase is 'train', 'eval' or 'test', got {phase!r}")
        tested = [node for node in self._nodes if phase in node.role.split("-")]
        for node in tested:
            self.build(node, 1 + self._bundle_offset + self._nodes.index(node))
        asked = [on_own_thread(f"{self._name}/{node.id}", node.handle._test, phase, **kwargs) for node in tested]
        return [each.result() for each in asked]

    def pull_version(self, node_ids: NodeId | Sequence[NodeId], timeout: float | None = None) -> Any:
        """The newest version of a node, or of several in this order; see `Published.pull`. They stay where they are.

        Waits for nodes that have none yet, while they run; None for one of which none comes within `timeout` seconds.
        """
        several = not isinstance(node_ids, str | int)
        wanted: Collection[NodeId] = node_ids if several else [node_ids]  # type: ignore[assignment,list-item]
        end = None if timeout is None else time.monotonic() + timeout
        found = []
        for node in [self[id] for id in wanted]:
            left = None if end is None else max(0.0, end - time.monotonic())
            found.append(self._pull(node, left if self.running else 0.0))
        return found if several else found[0]

    def send(self, header: str, body: Any = None, to: NodeId | Sequence[NodeId] | None = None) -> None:
        """A message of the federation's own to all nodes or to some, whatever the edges; STOP ends their programs.

        Raises FederationError for unknown nodes, and before a run.
        """
        if self._tp_manager is None:
            raise FederationError("there is nobody to send to before train() and after stop()")
        named = [to] if isinstance(to, str | int) else to
        self._tp_manager.supervise(header, body, named)

    def stop(self) -> None:
        """End all programs that wait for something, and the event loops. In any state, and again too.

        A program that computes comes to its end at its next send or receive.
        """
        self._stopped = True
        self._close_manager()
        if self._building is not None:
            self._building.close()
            self._building = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ for subclasses

    def build(self, node: VirtualNode, bundle: int = 0) -> Any:
        """Its handle; it is made by the first call."""
        if not node.built:
            made = node.build(bundle, None if isinstance(self._pg, Resources) else self._pg)
            if inspect.isawaitable(made):
                if self._building is None:
                    self._building = LoopThread(f"{self._name}/build")

                async def building() -> Any:
                    return await made

                self._building.run(building())
        return node.handle

    def create_topology_manager(self) -> TopologyManager:
        """Join the nodes by the federation's graph; those that are built talk by it from now on."""
        return self.joined(self._topology)

    def joined(self, graph: Source) -> TopologyManager:
        """The nodes, joined by any graph."""
        manager = TopologyManager(self._name)
        manager.link_nodes(self.node_ids, graph)
        for node in self._nodes:
            if node.built:
                node.handle.join(manager)
        return manager

    def collect_federation_metrics(self) -> dict[str, Any]:
        """How many nodes are built and run, who has what of the machine, and what was sent."""
        return {
            "active_nodes": sum(node.built for node in self._nodes),
            "running_nodes": sum(not each.done() for each in self._runtime_remotes),
            "resource_utilization": self.get_resource_stats(),
            "message_throughput": self._tp_manager.get_stats() if self._tp_manager is not None else {},
        }

    def get_resource_stats(self) -> dict[NodeId, dict[str, float]]:
        """`resources` of the nodes that are built."""
        shares = self.resources
        return {node.id: shares.get(node.id, {}) for node in self._nodes if node.built}

    # ------------------------------------------------------------------ the inside

    def _pull(self, node: VirtualNode, timeout: float | None) -> dict[str, Any] | None:
        found: dict[str, Any] | None = node.handle._pull_version(timeout=timeout) if node.built else None
        return found

    def _ended_one(self, program: Future[Any]) -> None:
        """An error of one ends what the others wait for, who would wait for it."""
        if program.exception() is not None and self._tp_manager is not None and not self._tp_manager.closed:
            self._tp_manager.supervise("STOP", None)

    def _close_manager(self) -> None:
        if self._tp_manager is not None:
            self._tp_manager.close()
            self._tp_manager = None
