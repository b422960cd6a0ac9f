"""The centre of a star whose workers are other processes: it lets them in, aggregates, and keeps all models equal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from byzflow.errors import FederationError, QuorumLost
from byzflow.federation import checkpoint
from byzflow.federation.centre import Centre, State
from byzflow.federation.presence import Presence
from byzflow.federation.remote import SERVER, Say, Setup, finite
from byzflow.federation.report import History, RoundReport, Sink
from byzflow.gossip import contract, programs
from byzflow.gossip.deadline import Deadline
from byzflow.gossip.defence import Defence
from byzflow.gossip.door import Door, Run
from byzflow.gossip.drive import drive
from byzflow.gossip.effects import Apply, Effect, NodeId, Recv, Turn
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.mailbox import AHEAD
from byzflow.gossip.pace import Pace
from byzflow.gossip.performer import Performer, Seat, Told
from byzflow.gossip.tcp_network import TcpNetwork
from byzflow.memory import ByNode

START = 3.0  # seconds in which others may come once the quorum is there
ANSWER = 1.0  # seconds in which workers tell their models' digests
LAST_CALL = 6.0  # seconds in which they may come, to a server that finds all rounds done
ENDING = 2.0  # seconds in which they go when they are told to


class RemoteServer:
    """`await RemoteServer(setup).run()` is one run, or what a checkpoint leaves of it.

    A worker that registers is sent the model, its momentum and the round, whenever it comes; so is one that asks, and
    one whose digest differs. Rounds begin once the quorum is there. Each ends when all who are linked have spoken, or
    with the quorum at the deadline. A step is in the checkpoint, if there is one, before any worker is told of it.
    """

    def __init__(
        self, setup: Setup, rounds: int | None = None, *, say: Say = lambda line: None, sinks: Sequence[Sink] = ()
    ) -> None:
        file, training = setup.file, setup.file.training
        assert file.server is not None
        self.setup, self.say, self.sinks = setup, say, tuple(sinks)
        self.rounds = training.rounds if rounds is None else rounds
        self.history = History()
        self.centre = Centre(
            setup.module(), training.learning_rate, training.momentum, test=setup.split, before=self._keep
        )
        self.defence = Defence(setup.rule)
        self.next = self._resumed()
        """The round that the model is the beginning of."""
        self._turn = self.next
        keys = setup.keys_of(file.server.keys)
        host = setup.bound(file.server.host, file.server.bind_host, keys, say)
        self.network = TcpNetwork(
            SERVER,
            setup.graph,
            setup.contract,
            {"update": contract.vector, "digest": contract.digest, "sync": contract.nothing},
            {"digest": self._digest_came, "sync": self._sync_came},
            listen=f"tcp://{f'[{host}]' if ':' in host else host}:{file.server.port}",
            names=setup.names,
            keys=keys,
            plain=setup.plain,
            on_link=self._linked,
            on_end=self._left,
        )
        self.shared = Run(
            lambda: self.network.topology,
            frozenset(each.id for each in setup.members),
            setup.f,
            SERVER,
            1.0,
            setup.quorum,
            training.deadline,
            training.seed,
        )
        self.door = Door(SERVER, self.shared)
        self.deadline = Deadline(training.deadline)
        self.pace = Pace()
        self.performer = Performer(
            Seat(SERVER, self.centre),
            self.shared,
            self.network,
            self.pace,
            self.defence,
            tell=lambda told: self._told.append(told),
            patience=training.patience,
        )
        self._told: list[Told] = []
        self.presence = Presence([each.id for each in setup.members], say)
        self._digests: dict[int, dict[NodeId, str]] = {}
        self._own: dict[int, str] = {}
        self._sent_again: dict[NodeId, int] = {}
        self._quiet: set[NodeId] = set()
        self._over = False

    # ------------------------------------------------------------------ the run

    async def run(self) -> History:
        """All rounds. Raises QuorumLost if too few workers come, or speak, in `training.patience` seconds."""
        self.network.mailbox(SERVER).restart(self.next)
        await self.pace.jump(SERVER, self.next)
        async with self.network:
            self._own[self.next] = self.centre.digest()
            self.say(f"listening at {self.network.hub.url}" + (", TLS" if self.network.hub.keys else ", not encrypted"))
            program: asyncio.Task[None] | None = None
            try:
                if self.next < self.rounds:
                    await self._gathered()
                    program = asyncio.create_task(drive(programs.server(self.door), self._perform))
                else:  # it ended before its workers were told
                    everybody = len(self.setup.members)
                    await self.presence.until(lambda: len(self.network.lines) == everybody, LAST_CALL)
                for number in range(self.next, self.rounds):
                    await self._round(number, program)
                    self._forget(number)
            finally:
                await self._ended(program)
        return self.history

    async def _gathered(self) -> None:
        """Until the quorum is there, and a moment longer for the others, who may come later too."""
        workers = [each.id for each in self.setup.members]
        needed, patience = self.door.quorum(workers), self.setup.file.training.patience
        self.say(f"waiting for {needed} of {len(workers)} workers: {', '.join(map(str, workers))}")
        if not await self.presence.until(lambda: len(self.network.lines) >= needed, patience):
            raise QuorumLost(
                f"{len(self.network.lines)} of {needed} needed workers came in {patience:g} s; "
                f"missing: {'; '.join(f'{id} ({why})' for id, why in self._absent(workers).items())}"
            )
        await self.presence.until(
            lambda: len(self.network.lines) == len(workers), min(START, self.setup.file.training.deadline)
        )

    async def _round(self, number: int, program: asyncio.Task[None] | None) -> None:
        assert program is not None
        began = time.perf_counter()
        await self.pace.allow(number + 1)
        waiting = asyncio.create_task(self.pace.finished(number, [SERVER]))
        await asyncio.wait([waiting, program], return_when=asyncio.FIRST_COMPLETED)
        if program.done():
            waiting.cancel()
            await program  # raises what ended it
            raise FederationError("the server's program ended before its rounds did")
        own = self._own[self.next] = self.centre.digest()
        for sender, theirs in list(self._digests.get(self.next, {}).items()):
            self._compare(sender, self.next, theirs)
        every = self.setup.file.training.evaluate_every
        metrics = await asyncio.to_thread(self.centre.evaluate) if every and (number + 1) % every == 0 else {}
        await self._all_told(self.next)
        self._report(number, time.perf_counter() - began, finite(metrics), own)

    async def _ended(self, program: asyncio.Task[None] | None) -> None:
        """Tell all to stop after the last step that was sent, and let them go."""
        self._over = True
        await self.pace.stop()
        if program is not None:
            self.network.mailbox(SERVER).stop()
            await asyncio.gather(program, return_exceptions=True)
        self.network.post(self.network.linked, "stop", None, self.next)
        if not await self.presence.until(lambda: not self.network.lines, ENDING):
            self.say(f"still linked: {', '.join(map(str, self.network.linked))}")

    async def _perform(self, effect: Effect[Any]) -> Any:
        """As the performer does, with the deadline of the round, and noting which round the model belongs to."""
        if isinstance(effect, Recv):
            heard = await self.performer.perform(replace(effect, deadline=self.deadline.seconds()))
            self.deadline.note(heard.ages.values())
            return heard
        if isinstance(effect, Apply):
            self._turn = effect.round
        outcome = await self.performer.perform(effect)
        if isinstance(effect, Apply):  # nothing else runs between the step and this: a model and its round fit always
            self.next = effect.round + 1
        if isinstance(effect, Turn) and outcome is not None:
            self.next = outcome
        return outcome

    # ------------------------------------------------------------------ workers

    def _linked(self, node: NodeId) -> None:
        self._quiet.discard(node)
        self.presence.came(node)
        self._init(node)
        if self._over:
            self.network.post([node], "stop", None, self.next)

    def _left(self, node: NodeId, why: str) -> None:
        self.presence.went(node, why)

    def _init(self, node: NodeId) -> None:
        """Send a worker what it needs to be in this round."""
        state = self.centre.state()
        value = [self.rounds, state["vector"], state.get("velocity")]
        self.network.post([node], "init", value, self.next)

    def _sync_came(self, envelope: Envelope) -> None:
        self._send_again(envelope.sender)

    def _digest_came(self, envelope: Envelope) -> None:
        round = envelope.round
        if round is None or abs(round - self.next) > AHEAD:
            return
        self._digests.setdefault(round, {})[envelope.sender] = envelope.value
        if round in self._own:
            self._compare(envelope.sender, round, envelope.value)
        self.presence.changed.set()

    def _compare(self, sender: NodeId, round: int, theirs: str) -> None:
        """A worker that has another model is sent the right one."""
        if theirs != self._own[round] and self._send_again(sender):
            self.say(f"{sender} has another model before round {round + 1}: it is sent the right one")

    def _send_again(self, node: NodeId) -> bool:
        """Once a round, however often it is asked for."""
        again = self._sent_again.get(node, -1) < self.next
        if again:
            self._sent_again[node] = self.next
            self._init(node)
        return again

    async def _all_told(self, round: int) -> None:
        """Until the workers whose vectors came in time have told their digests; who once did not is not waited for."""
        heard = {node for told in self._told if told.heard is not None for node in told.heard.values}

        def missing() -> set[NodeId]:
            return (heard & self.network.lines.keys()) - self._digests.get(round, {}).keys() - self._quiet

        if not await self.presence.until(lambda: not missing(), ANSWER):
            self._quiet |= missing()

    # ------------------------------------------------------------------ what is kept and told

    def _absent(self, missing: Sequence[NodeId]) -> dict[NodeId, str]:
        return self.presence.absent(missing, self.network, self.deadline)

    def _report(self, number: int, seconds: float, metrics: dict[str, float], own: str) -> None:
        told, self._told = self._told, []
        verdict = next((each.verdict for each in told if each.verdict is not None), None)
        missing = () if verdict is None else tuple(verdict.missing)
        digests: dict[str, tuple[NodeId, ...]] = {own: (SERVER,)}
        for node, theirs in self._digests.get(number + 1, {}).items():
            digests[theirs] = (*digests.get(theirs, ()), node)
        report = RoundReport(
            number,
            seconds,
            self.network.linked,
            metrics,
            {} if verdict is None else verdict.weights,
            {} if verdict is None else verdict.rejected,
            missing,
            {each.node: each.error for each in told if each.error},
            digests,
            problem="" if verdict is None else verdict.problem,
            absent=self._absent(missing),
            refused=self.presence.refusals(self.network, keep=True),
        )
        self.history.rounds.append(report)
        for sink in self.sinks:
            sink(report)

    def _forget(self, number: int) -> None:
        """What is about rounds that are over."""
        for kept in (self._digests, self._own):
            for round in [each for each in kept if each < number - AHEAD]:
                del kept[round]

    async def _keep(self, state: State) -> None:
        """Write down what the step of this turn leads to, before it is taken and sent.

        In a thread, so that links live on while the disk is slow; the server's program waits, so there is one write at
        a time. A checkpoint that cannot be written is told of, and the run goes on; what the disk holds is then older.
        """
        keep = self.setup.file.checkpoint
        done = self._turn + 1
        if keep is None or (done % keep.every and done != self.rounds):
            return
        terms = self.setup.contract
        about: dict[str, checkpoint.Value] = {"run": terms.run, "schema": terms.schema, "round": done}
        whole = {**state, **about, "memory": _packed(self.defence.state)}
        await asyncio.to_thread(checkpoint.save, keep.path, whole)

    def _resumed(self) -> int:
        """The round that the checkpoint goes on with; 0 without one. FederationError if it is of another run."""
        keep = self.setup.file.checkpoint
        if keep is None or not keep.resume or not checkpoint.exists(keep.path):
            return 0
        state = checkpoint.load(keep.path)
        terms, found = self.setup.contract, state.get("round")
        if (state.get("run"), state.get("schema")) != (terms.run, terms.schema) or not isinstance(found, int):
            raise FederationError(
                f"{keep.path} is of run {state.get('run')!r} or of another model: remove it, or set checkpoint.resume "
                "to false"
            )
        self.centre.load_state(state)
        self.defence.state = _unpacked(state["memory"])
        self.say(f"resumed from {keep.path}: {found} rounds are done")
        return found


def _packed(memory: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule remembers, for a checkpoint, whose mappings have words for keys."""
    return {
        name: {"nodes": {str(node): each for node, each in value.items() if each is not None}}
        if isinstance(value, ByNode)
        else {"all": value}
        for name, value in memory.items()
        if value is not None
    }


def _unpacked(packed: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: ByNode({int(node): each for node, each in value["nodes"].items()}) if "nodes" in value else value["all"]
        for name, value in packed.items()
    }
