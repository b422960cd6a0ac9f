"""A federation: nodes, a graph that joins them, and a defence. It really trains, with a centre or without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from byzflow.errors import FederationError, QuorumLost, Stopped, WorkerDied, one_line
from byzflow.federation import checkpoint as checkpoints
from byzflow.federation import resume as resuming
from byzflow.federation.churn import Churn
from byzflow.federation.claims import believed, checked_cap
from byzflow.federation.grouping import Grouping
from byzflow.federation.ledgers import Ledgers
from byzflow.federation.member import Member
from byzflow.federation.nodes import ByzantineNode
from byzflow.federation.observer import Observer, can
from byzflow.federation.report import History, RoundReport, Sink
from byzflow.federation.resources import Resources, plan
from byzflow.federation.settings import check_heard, check_names, check_numbers
from byzflow.federation.supervision import Supervision, Supervisor
from byzflow.federation.versions import VersionStore
from byzflow.federation.virtual_node import VirtualNode
from byzflow.federation.workers import Workers
from byzflow.gossip import programs
from byzflow.gossip.cluster import BETWEEN, SETTING, Clusters, cluster
from byzflow.gossip.defence import Defence
from byzflow.gossip.door import Door, Run
from byzflow.gossip.drive import drive
from byzflow.gossip.effects import NodeId
from byzflow.gossip.mailbox import AHEAD
from byzflow.gossip.network import LocalNetwork
from byzflow.gossip.pace import Pace
from byzflow.gossip.performer import Performer, Seat, ask
from byzflow.gossip.topology import Source, Topology, topology
from byzflow.gossip.varying import Varying
from byzflow.gossip.weights import metropolis_hastings
from byzflow.gossip.witness import Witness
from byzflow.graph.subtask import Pool
from byzflow.operators import Operator

Program = Callable[[Door], Coroutine[Any, Any, None]]
SERVER = "server"
GRACE = 0.2  # seconds that nodes have to end by themselves when a run is stopped
BEHIND = 16  # rounds that a worker of a star may be late before it is lost
STEPS = {
    "gradients": ("honest_gradient_for_next_batch", "apply_server_gradient"),
    "updates": ("local_update", "apply_server_update"),
    "models": ("half_step", "adopt"),
}
"""What a node's methods are called that make what it sends, and take what comes of all."""


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
        `byzflow ledger check` computes all of it again. For rules that remember nothing from round to round.
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
        given = dict(nodes) if isinstance(nodes, Mapping) else _numbered(nodes)
        check_names(given, byzantine, roles or {})
        self._workers = None if backend is None else Workers(backend, workers or len(given))
        self.members = {
            id: self._member(id, node, (roles or {}).get(id), id in byzantine) for id, node in given.items()
        }
        if knowledge not in ("omniscient", "own"):
            raise FederationError(f"knowledge is 'omniscient' or 'own', got {knowledge!r}")
        self._knowledge = knowledge
        self.centre = SERVER if isinstance(topology, str) and topology == "star" else None
        self.update_byzantines, self.weights, self.actor_pool = update_byzantines, dict(weights or {}), actor_pool
        if strangers := [str(id) for id in self.weights if id not in given]:
            raise FederationError(f"weights are of nodes that are not there: {', '.join(strangers)}")
        self._sample_cap = checked_cap(sample_cap)
        self.history = History()
        if exchange not in ("gradients", "updates"):
            raise FederationError(f"exchange is 'gradients' or 'updates', got {exchange!r}")
        self.exchange = exchange
        self.server, self.min_nodes, self.patience = server, min_nodes, patience
        self.sinks = tuple(sinks)
        ids = tuple(given)
        plan = Clusters.read(topology) if isinstance(topology, str) else topology
        speakers = [member.id for member in self.members.values() if member.trains()]
        self._grouping = Grouping(plan, ids, speakers, f or 0) if isinstance(plan, Clusters) else None
        graph = (
            Topology((SERVER, *ids), tuple((SERVER, id) for id in ids))
            if self.centre
            else _graph(self._grouping.groups.graph(ids) if self._grouping else topology, ids, seed)
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
            {} if self._grouping is None else {SETTING: self._grouping.groups},
        )
        self._defence, self._f = defence, f
        rule = Defence(defence, f).operator
        check_numbers(self.shared, patience)
        if self._grouping is None:
            check_heard(rule, self.shared, [member.id for member in self.members.values() if not member.byzantine])
        self._ledgers = Ledgers.of(ledger, rule)
        self.pace = Pace(skips=self.centre is None)
        self.witness = Witness()
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._performers: dict[NodeId, Performer] = {}
        self._fault: Exception | None = None
        self._mixing: dict[int, Any] = {}
        self._ended = False
        self.supervisor = Supervisor(supervision or Supervision(), self.pace, self.centre is not None)
        self.observer = Observer(
            self.members,
            self.supervisor,
            self.pace,
            self.history,
            self._grouping,
            evaluate_every,
            compare_digests and self.centre is not None,
        )
        if checkpoint_every < 1 or (resume and checkpoint is None):
            raise FederationError(
                f"checkpoint_every must be >= 1, got {checkpoint_every}"
                if checkpoint_every < 1
                else "resume=True needs the folder: checkpoint=..."
            )
        self._file = None if checkpoint is None else Path(checkpoint) / resuming.FILE
        self._save_every, self._resume = checkpoint_every, resume
        self._remembered: dict[NodeId, dict[str, Any]] = {}
        self.versions = VersionStore()
        self._churn = Churn(self)
        self._liars = [member.id for member in self.members.values() if member.byzantine]
        self._round_lock = asyncio.Lock()

    # ------------------------------------------------------------------ what users call

    @property
    def node_ids(self) -> tuple[NodeId, ...]:
        """All nodes, in their order."""
        return tuple(self.members)

    @property
    def num_nodes(self) -> int:
        """How many there are."""
        return len(self.members)

    @property
    def running(self) -> bool:
        """If rounds can be run now."""
        return bool(self._tasks) and not self._ended and self._fault is None

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
        if self._tasks or self._ended:
            return
        try:
            await self.supervisor.build(self.members.values())
            if self._ended:  # meanwhile, when there was nothing to end yet
                raise Stopped("the run was stopped before it began")
            if self._resume and self._file is not None and checkpoints.exists(self._file):
                await resuming.restore(self, await asyncio.to_thread(checkpoints.load, self._file))
            await self._believe(self.members.values())
        except BaseException:
            await self.stop()
            raise
        done = len(self.history)
        await self.supervisor.keep(self.members.values(), done)
        for member in self.members.values():
            if member.here:
                self.begin(member, done)
        if self.centre:
            self.begin(Member(SERVER, self.server or _NoModel()), done)

    async def _believe(self, members: Iterable[Member]) -> None:
        """Weights by what these claim, where that is wanted; those that were given stand."""
        if self._sample_cap is None:
            return
        claiming = [m for m in members if m.here and m.id not in self.weights and can(m.node, "samples")]
        asked = (self.supervisor.ask(member, "samples", len(self.history) - 1) for member in claiming)
        claims = dict(zip((member.id for member in claiming), await asyncio.gather(*asked), strict=True))
        self.weights |= believed({id: claim for id, claim in claims.items() if claim is not None}, self._sample_cap)

    def begin(self, member: Member, done: int) -> None:
        """Let a member's program begin, after so many rounds."""
        aggregates = member.id == SERVER or not self.centre
        defence = self._rule() if aggregates else None
        if defence is not None:
            defence.state = self._remembered.pop(member.id, {})
        member.performer = Performer(
            self._seat(member),
            self.shared,
            self.network,
            self.pace,
            defence if member.performer is None else member.performer.defence,
            self.witness,
            self.observer.hear,
            self.patience if aggregates or self.patience is None else 2 * self.patience,  # the centre waits itself
            self.actor_pool,
            self._weights if not self.centre else None,
            {} if self._grouping is None else {BETWEEN: Defence(self._grouping.plan.between)},
            ledger=None if defence is None or self._ledgers is None else self._ledgers.of_node(member.id),
            limit=self.supervisor.policy.call_timeout,
            again=member.mortal,
        )
        member.performer.round = done
        self.network.mailbox(member.id).begin(done)
        self.pace.at[member.id] = done - 1
        self._performers[member.id] = member.performer
        self._tasks[member.id] = asyncio.create_task(self._live(member))
        self.supervisor.watch(member)

    async def round(self) -> RoundReport:
        """One round. Raises what ended the run, if it ended."""
        if self._ended:
            why = "" if self._fault is None else f": {one_line(self._fault)}"
            raise FederationError(f"this federation was stopped{why}; make another")
        async with self._round_lock:
            await self.start()
            await self._churn.settle()
            await self._checked()
            number, began = len(self.history), time.perf_counter()
            punctual = self.observer.punctual(number, self._tasks)
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
            if self._file is not None and not len(self.history) % self._save_every:
                state = await resuming.collect(self)
                await asyncio.to_thread(checkpoints.save, self._file, state)
        for sink in self.sinks:
            sink(report)
        return report

    def _regroup(self, number: int) -> None:
        """The clusters after a round, where there are some."""
        nodes = self.network.topology.nodes
        if self._grouping is not None and self._grouping.after(number, nodes):
            self.shared.settings[SETTING] = self._grouping.groups
            self.topology = self._grouping.groups.graph(nodes)

    async def _checked(self) -> None:
        """Raise what ended the run, if it ended."""
        if self._fault is not None:
            await self.stop()
            raise self._fault
        if self._ended:  # by somebody else, in the middle of a round, which then does not count
            raise Stopped(f"the run was stopped in round {len(self.history) + 1}")

    async def add(self, id: NodeId, node: Any, neighbours: Sequence[NodeId] | None = None, role: str = "") -> None:
        """A node more, from the next round on, with the model that the others have, or that its neighbours agree on.

        `neighbours` are those it is joined to in a graph without a centre; see `byzflow.federation.rewire.joined` for
        what they are by default. Raises FederationError for an id that is taken, and for a graph that is a function of
        the round, whose nodes are fixed.
        """
        async with self._round_lock:
            if self._ended:
                raise FederationError("this federation was stopped; make another")
            await self._churn.add(self._member(id, node, role or None, False), neighbours)

    async def remove(self, id: NodeId) -> None:
        """A node less, from the next round on; its neighbours are joined where the graph would fall apart."""
        async with self._round_lock:
            await self._churn.remove(id)

    async def run(self, rounds: int) -> History:
        """So many rounds more."""
        for _ in range(rounds):
            await self.round()
        return self.history

    def train(self, rounds: int) -> History:
        """`run` from outside of event loops: start, run and stop."""

        async def whole() -> History:
            async with self:
                return await self.run(rounds)

        return asyncio.run(whole())

    async def stop(self) -> None:
        """End all nodes' programs, wherever they are, and all that was built here. In any state, and again too."""
        self._ended = True
        await self.pace.stop()
        self.network.stop()
        busy: set[asyncio.Task[None]] = set()
        if self._tasks:
            _, busy = await asyncio.wait(self._tasks.values(), timeout=GRACE)
        for task in busy:  # in a node's own code, which may never end
            task.cancel()
        await self.supervisor.close(self.members.values())
        if self._ledgers is not None:
            self._ledgers.close()
        if self._workers is not None:
            await self._workers.close()
        if busy:  # but not for what waits for ever on a worker that is not ours to end
            await asyncio.wait(busy, timeout=GRACE)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.stop()

    # ------------------------------------------------------------------ what is saved

    @property
    def rule(self) -> str:
        """The defence as a spec."""
        return str(Defence(self._defence, self._f).operator)

    def rule_memory(self) -> dict[NodeId, dict[str, Any]]:
        """What the rule of each node that aggregates remembers."""
        return {id: each.defence.state for id, each in self._performers.items() if each.defence is not None}

    def remember(self, memory: dict[NodeId, dict[str, Any]]) -> None:
        """What the rules remember, before they begin."""
        self._remembered = memory

    # ------------------------------------------------------------------ the nodes' lives

    def _member(self, id: NodeId, node: Any, role: str | None, byzantine: bool) -> Member:
        virtual = node if isinstance(node, VirtualNode) else None
        kind = virtual.template if virtual is not None else type(node)
        if virtual is not None and self._workers is not None:
            virtual.placed(self._workers)
        lies = byzantine or (isinstance(kind, type) and issubclass(kind, ByzantineNode))
        return Member(id, node, role or ("train-eval" if virtual is None else virtual.role), lies, virtual=virtual)

    def _seat(self, member: Member) -> Seat:
        train, take = STEPS[self.exchange if self.centre else "models"]
        ignored = member.byzantine and not self.update_byzantines
        taken = None if ignored else take
        return Seat(member.id, member.node, train, taken, member.byzantine, self._liars, self._knowledge)

    async def _live(self, member: Member) -> None:
        """Run a node's program to its end, whatever befalls the node."""
        performer, door = member.performer, Door(member.id, self.shared)
        assert performer is not None
        program = self._program(member.id)
        try:
            while True:
                try:
                    await self.supervisor.attend(member, drive(program(door), performer.perform))
                    break
                except WorkerDied as death:
                    if not await self.supervisor.revive(member, str(death)):
                        await self._churn.away(member)
                        break
        except Stopped:
            pass
        except WorkerDied as death:
            await self._lose(member, str(death))
        except QuorumLost as error:
            if self.centre and member.id != SERVER:  # it fell so far behind that it cannot catch up
                await self._lose(member, str(error))
            else:
                await self._fail(error)
        except Exception as error:
            await self._fail(FederationError(f"node {member.id}: {one_line(error)}"))
        finally:
            await self.pace.leave([member.id])

    def _program(self, id: NodeId) -> Callable[[Door], Coroutine[Any, Any, None]]:
        if self.centre:
            return programs.server if id == SERVER else programs.worker
        return programs.peer if self._grouping is None else cluster

    def _rule(self) -> Defence:
        defence = Defence(self._defence, self._f)
        defence.sample_weights = self.weights
        defence.recorded = self._ledgers is not None
        return defence

    async def _lose(self, member: Member, why: str) -> None:
        """A node is gone for good; the others go on while they are enough."""
        member.lost = why
        member.ready.set()
        self.supervisor.events[member.id] = f"lost: {why}"
        self.network.lose(member.id)
        await self.witness.gone(member.id)
        alive = [each for each in self.members.values() if not each.lost and each.trains()]
        least = max(self.min_nodes, 1 if self.centre else 2)
        if len(alive) < least or member.id == SERVER:
            await self._fail(
                FederationError(f"{member.id} is lost ({why}); {len(alive)} training nodes are left, of at least "
                                f"{least}: stopped after {len(self.history)} rounds")
            )  # fmt: skip

    async def _fail(self, error: Exception) -> None:
        """End the run; the first reason is the one that is told."""
        self._fault = self._fault or error
        await self.pace.stop()
        self.network.stop()

    def _weights(self, id: NodeId, round: int) -> Mapping[NodeId, float]:
        graph = self.shared.at(round)
        if graph.version not in self._mixing:
            self._mixing = {graph.version: metropolis_hastings(graph)}
        weights = self._mixing[graph.version]
        return {id: weights.own(id), **weights.of[id]}


class _NoModel:
    """The centre of a star that only aggregates."""

    def apply_server_gradient(self, step: Any) -> None:
        """Nothing to move."""

    apply_server_update = apply_server_gradient


def _numbered(nodes: Sequence[Any]) -> dict[NodeId, Any]:
    """Nodes by id: their place, or what a virtual one is called. FederationError for two of one id."""
    found: dict[NodeId, Any] = {}
    for place, node in enumerate(nodes):
        id = node.id if isinstance(node, VirtualNode) else place
        if id in found:
            raise FederationError(f"two nodes have the id {id!r}: give each its own")
        found[id] = node
    return found


def _graph(source: Source, ids: tuple[NodeId, ...], seed: int) -> Topology | Varying:
    graph = topology(source, ids, seed)
    if set(graph.nodes) != set(ids):
        graph = graph.renamed(ids) if isinstance(graph, Topology) else graph
    return graph
