"""A federation: nodes, a graph that joins them, and a defence. It really trains, with a centre or without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from byzflow.errors import FederationError, Stopped, one_line
from byzflow.federation.churn import Churn
from byzflow.federation.claims import believed, checked_cap
from byzflow.federation.grouping import Grouping
from byzflow.federation.ledgers import Ledgers, check_recordable
from byzflow.federation.lives import GRACE, SERVER, STEPS, Lives
from byzflow.federation.member import Member, numbered
from byzflow.federation.observer import Observer
from byzflow.federation.report import History, RoundReport, Sink
from byzflow.federation.resources import Resources, plan
from byzflow.federation.resume import Checkpoints
from byzflow.federation.settings import check_heard, check_names, check_nodes, check_numbers
from byzflow.federation.supervision import Supervision, Supervisor
from byzflow.federation.versions import VersionStore
from byzflow.federation.virtual_node import VirtualNode
from byzflow.federation.workers import Workers
from byzflow.gossip.cluster import SETTING, Clusters
from byzflow.gossip.defence import Defence
from byzflow.gossip.door import Run
from byzflow.gossip.effects import NodeId
from byzflow.gossip.mailbox import AHEAD
from byzflow.gossip.network import LocalNetwork
from byzflow.gossip.pace import Pace
from byzflow.gossip.performer import ask, can
from byzflow.gossip.topology import Source, Topology, topology
from byzflow.gossip.varying import Varying
from byzflow.gossip.witness import Witness
from byzflow.graph.subtask import Pool
from byzflow.operators import Operator

BEHIND = 16  # rounds that a worker of a star may be late before it is lost


class Federation:
    """Nodes that train one model, or one each, by rounds.

        async with Federation(nodes, topology="star", defence="nnm | trimmed_mean", f=2) as federation:
            history = await federation.run(rounds=10)

    With "star" the nodes are workers of a centre, which aggregates what they send (gradients) and gives all the same
    step. With any other graph each node takes a half step, and mixes with its neighbours by the defence.

    Parameters
    ----------
    nodes : honest and Byzantine nodes, by id or in a list (ids 0, 1, ...); objects here or on workers, or a
        `VirtualNode` each, which has an id of its own, and is built when the federation starts.
    topology : "star", `Clusters` ("cluster", "cluster:3"), or anything that `byzflow.gossip.topology` reads.
    defence : the rule, a spec or operator; f may be left open in it.
    f : Byzantine nodes to bear, of those that one node hears.
    byzantine : ids of Byzantine nodes that are not instances of `ByzantineNode`, such as those on workers.
    knowledge : what Byzantine nodes see: the honest vectors that their receivers hear, or nothing but their own data.
    roles : "train", "eval", "test", "aggregate" or several joined by "-", by id; "train-eval" unless said.
    fraction, quorum, deadline, seed : see `byzflow.gossip.door.Run`.
    patience : seconds after which a node that waits for its quorum gives up.
    min_nodes : below so many live training nodes the run stops.
    exchange : what workers of a star send: gradients, or the updates of several local steps.
    server : the centre's own model, an object with `apply_server_gradient`, where it has one.
    update_byzantines : whether Byzantine nodes are given what comes of a round, too.
    weights : how much each sender counts in rules that take `sample_weights`, such as its samples; 1 where not said.
    sample_cap : weights are also what nodes claim as their `samples()` at the start, each believed up to this.
    actor_pool : on whose workers the centre's rule is computed; here without one, which is as fast on one host.
    evaluate_every : rounds between evaluations; 0 for none.
    compare_digests : whether a star compares the nodes' `digest()` after each round, where they have one.
    sinks : called with each round's report.
    supervision : what is done about workers that die; see `Supervision`.
    backend, workers : on how many workers of which kind virtual nodes live that name no place of their own; without
        `workers` one each.
    checkpoint, checkpoint_every : a folder, and after how many rounds the whole federation is saved there, with the
        nodes' places in their data and what rules remember; an older one is kept beside the newest.
    ledger : a folder in which every node that aggregates writes down each round, and of what it was made;
        `byzflow ledger check` computes all of it again. For rules that remember nothing from round to round. A folder
        that holds rounds already is refused, but for a run that is resumed, which drops those after its checkpoint.
    resume : go on from the checkpoint in that folder, to the bit as if there had been no break, if there is one. Give
        the same nodes, made in the same way, and the same settings.

    Raises
    ------
    FederationError, SpecError, NotEnoughSenders : before anything runs, for settings that cannot work.
    """

    def __init__(
        self,
        nodes: Sequence[Any] | Mapping[NodeId, Any],
        topology: Source | Clusters = "star",
        defence: str | Operator = "mean",
        f: int | None = None,
        *,
        byzantine: Sequence[NodeId] = (),
        knowledge: Literal["omniscient", "own"] = "omniscient",
        roles: Mapping[NodeId, str] | None = None,
        fraction: float = 1.0,
        quorum: int | None = None,
        deadline: float | None = None,
        patience: float | None = 60.0,
        min_nodes: int = 1,
        seed: int = 0,
        exchange: Literal["gradients", "updates"] = "gradients",
        server: Any = None,
        update_byzantines: bool = True,
        weights: Mapping[NodeId, float] | None = None,
        sample_cap: float | None = None,
        actor_pool: Pool | None = None,
        evaluate_every: int = 1,
        compare_digests: bool = True,
        sinks: Sequence[Sink] = (),
        supervision: Supervision | None = None,
        backend: str | None = None,
        workers: int | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
        ledger: str | Path | None = None,
    ) -> None:
        given = dict(nodes) if isinstance(nodes, Mapping) else numbered(nodes)
        check_names(given, byzantine, roles or {})
        if backend is not None and not any(isinstance(node, VirtualNode) for node in given.values()):
            raise FederationError(f"backend={backend!r} is where a VirtualNode is made, and none of the nodes is one")
        self._workers = None if backend is None else Workers(backend, workers or len(given))
        self.members = {
            id: Member.of(id, node, (roles or {}).get(id, ""), id in byzantine, self._workers)
            for id, node in given.items()
        }
        if knowledge not in ("omniscient", "own"):
            raise FederationError(f"knowledge is 'omniscient' or 'own', got {knowledge!r}")
        self.knowledge = knowledge
        self.centre = SERVER if isinstance(topology, str) and topology == "star" else None
        self.update_byzantines, self.weights, self.actor_pool = update_byzantines, dict(weights or {}), actor_pool
        if strangers := [str(id) for id in self.weights if id not in given]:
            raise FederationError(f"weights are of nodes that are not there: {', '.join(strangers)}")
        self._sample_cap = checked_cap(sample_cap)
        self.history = History()
        if exchange not in ("gradients", "updates"):
            raise FederationError(f"exchange is 'gradients' or 'updates', got {exchange!r}")
        self.exchange = exchange
        check_nodes(self.members.values(), STEPS[exchange if self.centre else "models"][0])
        self.server, self.min_nodes, self.patience = server, min_nodes, patience
        self.sinks = tuple(sinks)
        ids = tuple(given)
        plan = Clusters.read(topology) if isinstance(topology, str) else topology
        speakers = [member.id for member in self.members.values() if member.trains()]
        self.grouping = Grouping(plan, ids, speakers, f or 0) if isinstance(plan, Clusters) else None
        graph = (
            Topology((SERVER, *ids), tuple((SERVER, id) for id in ids))
            if self.centre
            else _graph(self.grouping.groups.graph(ids) if self.grouping else topology, ids, seed)
        )
        self.network = LocalNetwork(graph, BEHIND if self.centre else AHEAD)
        self.shared = Run(
            lambda: self.network.topology,
            frozenset(speakers),
            0 if f is None else f,
            self.centre,
            fraction,
            quorum,
            deadline,
            seed,
            {} if self.grouping is None else {SETTING: self.grouping.groups},
        )
        self.defence, self.f = defence, f
        rule = Defence(defence, f).operator
        check_numbers(self.shared, patience)
        if self.grouping is None:
            check_heard(rule, self.shared, [member.id for member in self.members.values() if not member.byzantine])
        self.ledgers = None if ledger is None else Ledgers(ledger, [SERVER] if self.centre else ids)
        if self.ledgers is not None:
            check_recordable(rule)
            if not resume:
                self.ledgers.check_unused()
        self.pace = Pace(skips=self.centre is None)
        self.witness = Witness()
        self.supervisor = Supervisor(supervision or Supervision(), self.pace, self.centre is not None)
        self.observer = Observer(
            self.members,
            self.supervisor,
            self.pace,
            self.history,
            self.grouping,
            evaluate_every,
            compare_digests and self.centre is not None,
        )
        self._checkpoints = Checkpoints(checkpoint, checkpoint_every, resume)
        self.versions = VersionStore()
        self.lives = Lives(self)
        self._churn = Churn(self)
        self._round_lock = asyncio.Lock()

    @property
    def node_ids(self) -> tuple[NodeId, ...]:
        """All nodes, in their order."""
        return tuple(self.members)

    @property
    def num_nodes(self) -> int:
        """How many there are."""
        return len(self.members)

    @property
    def rule(self) -> str:
        """The defence as a spec."""
        return str(Defence(self.defence, self.f).operator)

    @property
    def running(self) -> bool:
        """If rounds can be run now."""
        return bool(self.lives.tasks) and not self.lives.ended and self.lives.fault is None

    @property
    def topology(self) -> Topology | Varying:
        """Who hears whom; setting another changes it for the rounds to come, once the one that runs is over."""
        return self.network.topology

    @topology.setter
    def topology(self, graph: Topology | Varying) -> None:
        self._churn.change(graph)
        if not self._round_lock.locked():
            self._churn.rewire()

    @property
    def resources(self) -> Resources:
        """A plan of how the nodes share this machine."""
        return plan(self.num_nodes)

    async def pull_version(
        self, ids: Sequence[NodeId] | None = None, timeout: float | None = None
    ) -> list[dict[str, Any]]:
        """What these nodes, or all, have as their `model` now, in this order; asked for only when somebody wants it.

        What nodes or others publish themselves, by `versions.update_version`, stands beside it. Raises MessageTimeout
        with the ids of those who have nothing within `timeout` seconds.
        """
        wanted = self.node_ids if ids is None else tuple(ids)
        models = await asyncio.gather(*(self._model(self._known(id), timeout) for id in wanted))
        for id, model in zip(wanted, models, strict=True):
            if model is not None and not self.versions.is_latest(id, model=model):
                self.versions.update_version(id, model=model)
        return await self.versions.pull_version(wanted, timeout)

    async def _model(self, member: Member, timeout: float | None) -> Any:
        """A member's model; None if it has none, or does not answer."""

        async def parameters(node: Any) -> Any:
            return await ask(node, "get_parameters", limit=self.supervisor.policy.call_timeout)

        if not can(member.node, "get_parameters"):
            return None
        asking = asyncio.ensure_future(self.supervisor.reach(member, parameters, len(self.history) - 1))
        asking.add_done_callback(lambda late: late.cancelled() or late.exception())
        await asyncio.wait({asking}, timeout=timeout)
        return asking.result() if asking.done() and asking.exception() is None else None

    def _known(self, id: NodeId) -> Member:
        if id not in self.members:
            raise FederationError(f"no node {id!r}; there are {', '.join(map(str, self.members))}")
        return self.members[id]

    def __getitem__(self, id: NodeId) -> Any:
        """A node. Raises FederationError with the known ids."""
        return self._known(id).node

    async def start(self) -> None:
        """Build the nodes and let their programs begin; needless before `run`."""
        if self.lives.tasks or self.lives.ended:
            return
        try:
            await self.supervisor.build(self.members.values())
            if self.lives.ended:  # meanwhile, when there was nothing to end yet
                raise Stopped("the run was stopped before it began")
            await self._checkpoints.go_on(self)
            if self._checkpoints.resume and self.ledgers is not None:
                self.ledgers.rewind(len(self.history))  # what came after the checkpoint is made again
            await self._believe(self.members.values())
        except BaseException:
            await self.stop()
            raise
        await self.supervisor.keep(self.members.values(), len(self.history))
        self.lives.begin_all(len(self.history))

    async def _believe(self, members: Iterable[Member]) -> None:
        """Weights by what these claim, where that is wanted; those that were given stand."""
        if self._sample_cap is None:
            return
        claiming = [m for m in members if m.here and m.id not in self.weights and can(m.node, "samples")]
        asked = (self.supervisor.ask(member, "samples", len(self.history) - 1) for member in claiming)
        claims = dict(zip((member.id for member in claiming), await asyncio.gather(*asked), strict=True))
        self.weights |= believed({id: claim for id, claim in claims.items() if claim is not None}, self._sample_cap)

    async def round(self) -> RoundReport:
        """One round. Raises what ended the run, if it ended."""
        self._open()
        async with self._round_lock:
            await self.start()
            await self._churn.settle()
            await self._checked()
            number, began = len(self.history), time.perf_counter()
            punctual = self.observer.punctual(number, self.lives.tasks)
            await self.pace.allow(number + 1)
            await self.pace.finished(number, punctual)
            for late in self.observer.late(number):
                if self.centre is None:  # a late peer leaves out what is over; a late worker catches up on every step
                    self.network.mailbox(late).begin(number + 1)
            await self._checked()
            report = await self.observer.report(number, time.perf_counter() - began)
            await self.supervisor.keep(self.members.values(), number + 1)
            await self._checked()
            self.history.rounds.append(report)
            self._regroup(number)
            await self._checkpoints.save(self)
        for sink in self.sinks:
            sink(report)
        return report

    def _regroup(self, number: int) -> None:
        """The clusters after a round, where there are some."""
        nodes = self.network.topology.nodes
        if self.grouping is not None and self.grouping.after(number, nodes):
            self.shared.settings[SETTING] = self.grouping.groups
            self.topology = self.grouping.groups.graph(nodes)

    async def _checked(self) -> None:
        """Raise what ended the run, if it ended."""
        if self.lives.fault is not None:
            await self.stop()
            raise self.lives.fault
        if self.lives.ended:  # by somebody else, in the middle of a round, which then does not count
            raise Stopped(f"the run was stopped in round {len(self.history) + 1}")

    async def add(self, id: NodeId, node: Any, neighbours: Sequence[NodeId] | None = None, role: str = "") -> None:
        """A node more, from the next round on, with the model that the others have, or that its neighbours agree on.

        `neighbours` are those it is joined to in a graph without a centre; see `byzflow.federation.rewire.joined` for
        what they are by default. Raises FederationError for an id that is taken, and for a graph that is a function of
        the round, whose nodes are fixed.
        """
        async with self._round_lock:
            if self.lives.ended:
                raise FederationError("this federation was stopped; make another")
            await self._churn.add(Member.of(id, node, role, workers=self._workers), neighbours)

    async def remove(self, id: NodeId) -> None:
        """A node less, from the next round on; its neighbours are joined where the graph would fall apart."""
        async with self._round_lock:
            await self._churn.remove(id)

    def _open(self) -> None:
        if self.lives.ended:
            why = "" if self.lives.fault is None else f": {one_line(self.lives.fault)}"
            raise FederationError(f"this federation was stopped{why}; make another, or use `async with` and `run`")

    async def run(self, rounds: int) -> History:
        """So many rounds more."""
        for _ in range(rounds):
            await self.round()
        return self.history

    def train(self, rounds: int) -> History:
        """`run` from outside of event loops: start, run and stop. Once; `async with` it to run again and again."""
        self._open()

        async def whole() -> History:
            async with self:
                return await self.run(rounds)

        return asyncio.run(whole())

    async def stop(self) -> None:
        """End all nodes' programs, wherever they are, and all that was built here. In any state, and again too."""
        busy = await self.lives.end()
        await self.supervisor.close(self.members.values())
        if self.ledgers is not None:
            self.ledgers.close()
        if self._workers is not None:
            await self._workers.close()
        if busy:  # but not for what waits for ever on a worker that is not ours to end
            await asyncio.wait(busy, timeout=GRACE)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.stop()


def _graph(source: Source, ids: tuple[NodeId, ...], seed: int) -> Topology | Varying:
    graph = topology(source, ids, seed)
    if set(graph.nodes) != set(ids):
        graph = graph.renamed(ids) if isinstance(graph, Topology) else graph
    return graph
