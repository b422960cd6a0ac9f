"""A node of a network without a centre whose neighbours are other processes: it learns, gossips, and catches up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from byzflow.actors.ref import ActorRef, spawn
from byzflow.errors import FederationError, QuorumLost, Stopped
from byzflow.federation.nodes_file import Kind
from byzflow.federation.presence import Presence
from byzflow.federation.remote import Say, Setup, finite, graph_at
from byzflow.federation.remote_server import START
from byzflow.federation.remote_worker import Outcome
from byzflow.federation.report import History, RoundReport, Sink
from byzflow.gossip import contract, programs
from byzflow.gossip.deadline import Deadline
from byzflow.gossip.defence import Defence
from byzflow.gossip.door import Door, Run
from byzflow.gossip.drive import drive
from byzflow.gossip.effects import Adopt, Effect, NodeId, Recv, Train
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.mailbox import AHEAD
from byzflow.gossip.pace import Pace
from byzflow.gossip.performer import Performer, Seat, Told
from byzflow.gossip.tcp_network import TcpNetwork
from byzflow.gossip.weights import mixing


class RemotePeer:
    """`await RemotePeer(setup, id).run()` lasts for all rounds.

    Each node listens, and dials those of its neighbours that come after it in the file. A node that finds f + 1
    neighbours two rounds ahead or more (it was started again, or cut off) jumps to where they are: in that round it
    says nothing, and takes what the rule makes of theirs for its model.
    """

    def __init__(
        self,
        setup: Setup,
        id: int,
        kind: Kind | None = None,
        rounds: int | None = None,
        *,
        say: Say = lambda line: None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.setup, self.id, self.say, self.sinks = setup, id, say, tuple(sinks)
        self.member = setup.file.member(id, "nodes")
        self.byzantine = (kind or self.member.type) == "byzantine"
        training = setup.file.training
        self.rounds = training.rounds if rounds is None else rounds
        self.history = History()
        ids = [each.id for each in setup.members]
        graph = graph_at(setup.graph)
        near = (
            {*graph.neighbours(id), *graph.in_neighbours(id)} if graph is setup.graph else {*ids} - {id}
        )  # a graph that changes may join any two
        keys = setup.keys_of(self.member.keys)
        own = setup.bound(_known(self.member), self.member.bind_host, keys, say)
        self.presence = Presence([node for node in ids if node != id], say)
        self.network = TcpNetwork(
            id,
            setup.graph,
            setup.contract,
            {"half": contract.vector, "done": contract.nothing},
            {"half": self._half_came, "done": self._done_came},
            listen=f"tcp://{_host(own)}:{self.member.port}",
            dial={
                each.id: f"tcp://{_host(_known(each))}:{each.port}"
                for each in setup.members[ids.index(id) + 1 :]
                if each.id in near
            },
            names=setup.names,
            keys=keys,
            plain=setup.plain,
            on_link=self.presence.came,
            on_end=self.presence.went,
            on_trouble=lambda where, reason, pause: self.say(f"{reason}; again in {pause:.1f} s"),
            resend=True,
        )
        self.shared = Run(
            lambda: self.network.topology,
            frozenset(ids),
            setup.f,
            quorum=setup.quorum,
            deadline=training.deadline,
            seed=training.seed,
        )
        self.door = Door(id, self.shared)
        self.deadline = Deadline(training.deadline)
        self._told: list[Told] = []
        self._done: set[NodeId] = set()
        self._node: ActorRef | None = None
        self._session: asyncio.Task[None] | None = None
        self._over: asyncio.Future[None] | None = None

    async def run(self) -> Outcome:
        """Raises QuorumLost if too few neighbours come, or speak, in `training.patience` seconds."""
        self._over = asyncio.get_running_loop().create_future()
        async with await spawn(lambda: self.setup.node(self.member, self._kind)) as self._node, self.network:
            try:
                await self._gathered()
                if self._session is None:  # it has not jumped yet
                    self._session = asyncio.create_task(self._live(0, None))
                await self._over
                self.network.post(self.door.listeners(self.rounds), "done", None, self.rounds)
                near = set(self.door.listeners(self.rounds))
                await self.presence.until(lambda: near & self.network.lines.keys() <= self._done, self.deadline.longest)
                await self.network.flush(1.0)
            finally:
                if self._session is not None:
                    self._session.cancel()
                    await asyncio.gather(self._session, return_exceptions=True)
            # each node's model is its own here: the digest says nothing of the others'
            return Outcome(self.rounds, await self._digest(), finite(await self._node.evaluate()))

    @property
    def _kind(self) -> Kind:
        return "byzantine" if self.byzantine else "honest"

    async def _digest(self) -> str:
        assert self._node is not None
        return str(await self._node.digest())

    async def _gathered(self) -> None:
        """Until the quorum of neighbours is there, and a moment longer for the others."""
        near, training = self.door.speakers(0), self.setup.file.training
        needed = self.door.quorum(near)
        self.say(f"listening at {self.network.hub.url}, waiting for {needed} of {', '.join(map(str, near))}")

        def linked() -> int:
            return len(set(near) & self.network.lines.keys())

        if not await self.presence.until(lambda: linked() >= needed, training.patience):
            missing = self.presence.absent(near, self.network, self.deadline)
            raise QuorumLost(
                f"{linked()} of {needed} needed neighbours came in {training.patience:g} s; "
                f"missing: {'; '.join(f'{node} ({why})' for node, why in missing.items())}"
            )
        await self.presence.until(lambda: linked() == len(near), min(START, training.deadline))

    # ------------------------------------------------------------------ messages

    def _half_came(self, envelope: Envelope) -> None:
        mailbox = self.network.mailbox(self.id)
        ahead = sorted(self.network.rounds.values(), reverse=True)
        place = min(ahead[self.setup.f], self.rounds - 1) if len(ahead) > self.setup.f else 0  # "done" is no round
        if place >= mailbox.round + AHEAD and self._node is not None and not self._finished:
            self.say(f"{place - mailbox.round} rounds behind {self.setup.f + 1} neighbours: on with round {place + 1}")
            mailbox.begin(place)
            previous = self._session
            if previous is not None:
                previous.cancel()
            self._session = asyncio.create_task(self._live(place, previous, jumped=True))
        mailbox.put(envelope)

    def _done_came(self, envelope: Envelope) -> None:
        self._done.add(envelope.sender)
        self.presence.changed.set()

    @property
    def _finished(self) -> bool:
        return self._over is not None and self._over.done()

    # ------------------------------------------------------------------ the program

    async def _live(self, round: int, previous: asyncio.Task[None] | None, jumped: bool = False) -> None:
        """The peer's program from this round on."""
        assert self._over is not None
        pace = Pace(self.rounds)
        await pace.jump(self.id, round)
        if previous is not None:
            await asyncio.gather(previous, return_exceptions=True)
        performer = Performer(
            Seat(self.id, self._node, "half_step", "adopt", self.byzantine, [self.id], "own"),
            self.shared,
            self.network,
            pace,
            Defence(self.setup.rule, self.setup.f),
            mixing=lambda node, round: mixing(self.shared.at(round)).around(node),
            tell=lambda told: self._told.append(told),
            patience=self.setup.file.training.patience,
        )
        began = time.perf_counter()

        async def perform(effect: Effect[Any]) -> Any:
            nonlocal began
            if isinstance(effect, Train) and jumped and effect.round == round:
                return None  # its model is of long ago
            if isinstance(effect, Recv):
                heard = await performer.perform(replace(effect, deadline=self.deadline.seconds()))
                self.deadline.note(heard.ages.values())
                return heard
            outcome = await performer.perform(effect)
            if isinstance(effect, Adopt):
                await self._report(effect.round, time.perf_counter() - began)
                began = time.perf_counter()
                if effect.round + 1 >= self.rounds:
                    await pace.stop()
            return outcome

        try:
            await drive(programs.peer(self.door), perform)
        except (Stopped, asyncio.CancelledError):
            raise
        except Exception as error:
            if not self._over.done():
                self._over.set_exception(error)
        if not self._over.done():
            self._over.set_result(None)

    async def _report(self, number: int, seconds: float) -> None:
        assert self._node is not None
        told, self._told = self._told, []
        verdict = next((each.verdict for each in told if each.verdict is not None), None)
        missing = () if verdict is None else tuple(verdict.missing)
        every = self.setup.file.training.evaluate_every
        report = RoundReport(
            number,
            seconds,
            self.network.linked,
            finite(await self._node.evaluate()) if every and (number + 1) % every == 0 else {},
            {} if verdict is None else verdict.weights,
            {} if verdict is None else verdict.rejected,
            missing,
            {each.node: each.error for each in told if each.error},
            problem="" if verdict is None else verdict.problem,
            absent=self.presence.absent(missing, self.network, self.deadline),
            refused=self.presence.refusals(self.network, keep=True),
        )
        self.history.rounds.append(report)
        for sink in self.sinks:
            sink(report)


def _known(member: Any) -> str:
    if member.host is None or member.port is None:
        raise FederationError(f"nodes: id {member.id} needs host and port, where its neighbours reach it")
    return str(member.host)


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
