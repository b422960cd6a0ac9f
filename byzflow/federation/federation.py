"""A federation: nodes, a graph that joins them, and a defence. It really trains, with a centre or without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from types import TracebackType
from typing import Any, Literal, Self

from byzflow.errors import FederationError, QuorumLost, Stopped, WorkerDied, one_line
from byzflow.federation.nodes import ByzantineNode
from byzflow.federation.report import History, RoundReport, Sink
from byzflow.gossip import programs
from byzflow.gossip.defence import Defence
from byzflow.gossip.door import Door, Run
from byzflow.gossip.drive import drive
from byzflow.gossip.effects import NodeId
from byzflow.gossip.network import LocalNetwork
from byzflow.gossip.pace import Pace
from byzflow.gossip.performer import Performer, Seat, Told, ask
from byzflow.gossip.topology import Source, Topology, topology
from byzflow.gossip.varying import Varying
from byzflow.gossip.weights import metropolis_hastings
from byzflow.gossip.witness import Witness
from byzflow.operators import Operator

SERVER = "server"
GRACE = 0.2  # seconds that nodes have to end by themselves when a run is stopped
STEPS = {
    "gradients": ("honest_gradient_for_next_batch", "apply_server_gradient"),
    "updates": ("local_update", "apply_server_update"),
    "models": ("half_step", "adopt"),
}
"""What a node's methods are called that make what it sends, and take what comes of all."""
Program = Callable[[Door], Coroutine[Any, Any, None]]


@dataclass
class Member:
    """One participant. `node` is an object, an `ActorRef`, or what a `VirtualNode` builds; `role` as in Red."""

    id: NodeId
    node: Any
    role: str = "train-eval"
    byzantine: bool = False
    restarts: int = 0
    lost: str = ""
    """Why it is no longer there; empty while it is."""


class Federation:
    """Nodes that train one model, or one each, by rounds.

        async with Federation(nodes, topology="star", defence="nnm | trimmed_mean", f=2) as federation:
            history = await federation.run(rounds=10)

    With "star" the nodes are workers of a centre, which aggregates what they send (gradients) and gives all the same
    step. With any other graph each node takes a half step, and mixes with its neighbours by the defence.

    Parameters
    ----------
    nodes : honest and Byzantine nodes, by id or in a list (ids 0, 1, ...); objects here or on workers.
    topology : "star", or anything that `byzflow.gossip.topology` reads.
    defence : the rule, a spec or operator; f may be left open in it.
    f : Byzantine nodes to bear, of those that one node hears.
    byzantine : ids of Byzantine nodes that are not instances of `ByzantineNode`, such as those on workers.
    roles : "train", "eval", "test", "aggregate" or several joined by "-", by id; "train-eval" unless said.
    fraction, quorum, deadline, seed : see `byzflow.gossip.door.Run`.
    patience : seconds after which a node that waits for its quorum gives up.
    min_nodes : below so many live training nodes the run stops.
    exchange : what workers of a star send: gradients, or the updates of several local steps.
    server : the centre's own model, an object with `apply_server_gradient`, where it has one.
    evaluate_every : rounds between evaluations; 0 for none.
    compare_digests : whether a star compares the nodes' `digest()` after each round, where they have one.
    sinks : called with each round's report.

    Raises
    ------
    FederationError, SpecError, NotEnoughSenders : before anything runs, for settings that cannot work.
    """

    def __init__(
        self,
        nodes: Sequence[Any] | Mapping[NodeId, Any],
        topology: Source = "star",
        defence: str | Operator = "mean",
        f: int | None = None,
        *,
        byzantine: Sequence[NodeId] = (),
        roles: Mapping[NodeId, str] | None = None,
        fraction: float = 1.0,
        quorum: int | None = None,
        deadline: float | None = None,
        patience: float | None = 60.0,
        min_nodes: int = 1,
        seed: int = 0,
        exchange: Literal["gradients", "updates"] = "gradients",
        server: Any = None,
        evaluate_every: int = 1,
        compare_digests: bool = True,
        sinks: Sequence[Sink] = (),
    ) -> None:
        given = dict(nodes) if isinstance(nodes, Mapping) else dict(enumerate(nodes))
        self.members = {
            id: Member(
                id, node, (roles or {}).get(id, "train-eval"), id in byzantine or isinstance(node, ByzantineNode)
            )
            for id, node in given.items()
        }
        if not given:
            raise FederationError("a federation needs at least one node")
        if unknown := [str(id) for id in {*byzantine, *(roles or {})} if id not in given]:
            raise FederationError(f"no node {', '.join(unknown)}; there are {', '.join(map(str, given))}")
        self.centre = SERVER if topology == "star" else None
        self.history = History()
        if exchange not in ("gradients", "updates"):
            raise FederationError(f"exchange is 'gradients' or 'updates', got {exchange!r}")
        self.exchange = exchange
        self.server, self.min_nodes, self.patience = server, min_nodes, patience
        self.evaluate_every, self.compare_digests, self.sinks = evaluate_every, compare_digests, tuple(sinks)
        ids = tuple(given)
        graph = (
            Topology((SERVER, *ids), tuple((SERVER, id) for id in ids)) if self.centre else _graph(topology, ids, seed)
        )
        self.network = LocalNetwork(graph)
        self.shared = Run(
            lambda: self.network.topology,
            frozenset(member.id for member in self.members.values() if "train" in member.role.split("-")),
            0 if f is None else f,
            self.centre,
            fraction,
            quorum,
            deadline,
            seed,
        )
        self._defence, self._f = defence, f
        Defence(defence, f)
        self.pace = Pace()
        self.witness = Witness()
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._told: dict[int, list[Told]] = {}
        self._fault: Exception | None = None
        self._mixing: dict[int, Any] = {}
        self._ended = False

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
        return bool(self._tasks) and not self._ended

    @property
    def topology(self) -> Topology | Varying:
        """Who hears whom; setting another changes it for the rounds to come."""
        return self.network.topology

    @topology.setter
    def topology(self, graph: Topology | Varying) -> None:
        if set(graph.nodes) != set(self.network.topology.nodes):
            raise FederationError("another graph must have the same nodes")
        self._mixing.clear()
        self.network.topology = graph

    def __getitem__(self, id: NodeId) -> Any:
        """A node. Raises FederationError with the known ids."""
        if id not in self.members:
            raise FederationError(f"no node {id!r}; there are {', '.join(map(str, self.members))}")
        return self.members[id].node

    async def start(self) -> None:
        """Let the nodes' programs begin; needless before `run`."""
        if self._tasks or self._ended:
            return
        seats = [(member, self._seat(member), programs.worker if self.centre else programs.peer)
                 for member in self.members.values()]  # fmt: skip
        if self.centre:
            centre = Member(SERVER, self.server or _NoModel())
            seats.append((centre, Seat(SERVER, centre.node, take=STEPS[self.exchange][1]), programs.server))
        for member, seat, program in seats:
            self.pace.join(member.id)
            self._tasks[member.id] = asyncio.create_task(self._live(member, seat, program))

    async def round(self) -> RoundReport:
        """One round. Raises what ended the run, if it ended."""
        if self._ended:
            raise FederationError("this federation was stopped; make another")
        await self.start()
        number, began = len(self.history), time.perf_counter()
        await self.pace.allow(number + 1)
        await self.pace.finished(number, self._tasks)
        if self._fault is not None:
            await self.stop()
            raise self._fault
        report = await self._report(number, time.perf_counter() - began)
        self.history.rounds.append(report)
        for sink in self.sinks:
            sink(report)
        return report

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
        """End all nodes' programs, wherever they are. May be called twice."""
        self._ended = True
        await self.pace.stop()
        self.network.stop()
        if self._tasks:
            _, busy = await asyncio.wait(self._tasks.values(), timeout=GRACE)
            for task in busy:  # in a node's own code, which may never end
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    # ------------------------------------------------------------------ the nodes' lives

    def _seat(self, member: Member) -> Seat:
        liars = [each.id for each in self.members.values() if each.byzantine]
        train, take = STEPS[self.exchange if self.centre else "models"]
        return Seat(member.id, member.node, train, take, member.byzantine, liars)

    async def _live(self, member: Member, seat: Seat, program: Program) -> None:
        """Run a node's program to its end, whatever befalls the node."""
        aggregates = member.id == SERVER or not self.centre
        performer = Performer(
            seat,
            self.shared,
            self.network,
            self.pace,
            Defence(self._defence, self._f) if aggregates else None,
            self.witness,
            lambda told: self._told.setdefault(told.round, []).append(told),
            self.patience if aggregates or self.patience is None else 2 * self.patience,  # the centre waits itself
            self._weights if not self.centre else None,
        )
        try:
            await drive(program(Door(member.id, self.shared)), performer.perform)
        except Stopped:
            pass
        except WorkerDied as death:
            await self._lose(member, str(death))
        except QuorumLost as error:
            await self._fail(error)
        except Exception as error:
            await self._fail(FederationError(f"node {member.id}: {one_line(error)}"))
        finally:
            await self.pace.leave([member.id])

    async def _lose(self, member: Member, why: str) -> None:
        """A node is gone for good; the others go on while they are enough."""
        member.lost = why
        self.network.down(member.id)
        await self.witness.gone(member.id)
        alive = [each for each in self.members.values() if not each.lost and each.id in self.shared.contributors]
        if len(alive) < self.min_nodes or member.id == SERVER:
            await self._fail(
                FederationError(f"{member.id} is lost ({why}); {len(alive)} training nodes are left, of at least "
                                f"{self.min_nodes}: stopped after {len(self.history)} rounds")
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

    # ------------------------------------------------------------------ the report

    async def _report(self, number: int, seconds: float) -> RoundReport:
        told = self._told.pop(number, [])
        liars = {member.id for member in self.members.values() if member.byzantine}
        verdicts = [each.verdict for each in told if each.verdict is not None and each.node not in liars]
        shares: dict[NodeId, list[float]] = {}
        for verdict in verdicts:
            for sender, weight in verdict.weights.items():
                shares.setdefault(sender, []).append(weight)
        rejected = {sender: why for verdict in verdicts for sender, why in verdict.rejected.items()}
        missing = {sender: None for verdict in verdicts for sender in verdict.missing}
        alive = [member for member in self.members.values() if not member.lost]
        metrics: dict[str, float] = {}
        if self.evaluate_every and (number + 1) % self.evaluate_every == 0:
            metrics = await self._evaluate(alive)
        return RoundReport(
            number,
            seconds,
            tuple(member.id for member in alive),
            metrics,
            {sender: fmean(each) for sender, each in shares.items()},
            rejected,
            tuple(missing),
            {each.node: each.error for each in told if each.error},
            await self._digests(alive) if self.compare_digests and self.centre else {},
            next((verdict.problem for verdict in verdicts if verdict.problem), ""),
        )

    async def _evaluate(self, alive: Sequence[Member]) -> dict[str, float]:
        """The median of each metric over the honest nodes that evaluate."""
        judges = [m.node for m in alive if not m.byzantine and {"eval", "test"} & set(m.role.split("-"))]
        answers = await asyncio.gather(*(ask(node, "evaluate") for node in judges if _can(node, "evaluate")))
        names = dict.fromkeys(name for answer in answers for name in answer)
        return {name: median(answer[name] for answer in answers if name in answer) for name in names}

    async def _digests(self, alive: Sequence[Member]) -> dict[str, tuple[NodeId, ...]]:
        """Which honest nodes have which model."""
        holders = [member for member in alive if not member.byzantine and _can(member.node, "digest")]
        found: dict[str, tuple[NodeId, ...]] = {}
        for member, digest in zip(
            holders, await asyncio.gather(*(ask(member.node, "digest") for member in holders)), strict=True
        ):
            found[digest] = (*found.get(digest, ()), member.id)
        return found


class _NoModel:
    """The centre of a star that only aggregates."""

    def apply_server_gradient(self, step: Any) -> None:
        """Nothing to move."""

    apply_server_update = apply_server_gradient


def _can(node: Any, method: str) -> bool:
    """If a node, here or on a worker, has this method."""
    return callable(getattr(node, method, None))


def _graph(source: Source, ids: tuple[NodeId, ...], seed: int) -> Topology | Varying:
    graph = topology(source, ids, seed)
    if set(graph.nodes) != set(ids):
        graph = graph.renamed(ids) if isinstance(graph, Topology) else graph
    return graph
