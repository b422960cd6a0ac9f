"""A worker of a star whose centre is another process: it joins, learns, follows, and joins again when it has to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from byzflow.actors.ref import ActorRef, spawn
from byzflow.errors import FederationError, Stopped
from byzflow.federation.nodes_file import Kind
from byzflow.federation.remote import SERVER, Say, Setup, finite, hints
from byzflow.gossip import contract, programs
from byzflow.gossip.door import Door, Run
from byzflow.gossip.drive import drive
from byzflow.gossip.effects import Apply, Effect, NodeId, Send, Train
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.mailbox import AHEAD
from byzflow.gossip.pace import Pace
from byzflow.gossip.performer import Performer, Seat, Told
from byzflow.gossip.tcp_network import TcpNetwork

LAST_STEP = 60.0  # seconds in which the last steps are taken once it is told to stop


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: the rounds that its model has seen, its digest, and metrics on the test data."""

    rounds: int
    digest: str
    metrics: dict[str, float]


class RemoteWorker:
    """`await RemoteWorker(setup, id).run()` lasts until the server says stop.

    Whenever the server sends a model (at first, after a lost link, when this worker is too far behind or has another
    model), what it was doing ends, and it goes on from there: the round, the momentum and the place in its data are
    those of a worker that has been there all the time.
    """

    def __init__(self, setup: Setup, id: int, kind: Kind | None = None, *, say: Say = lambda line: None) -> None:
        self.setup, self.id, self.say = setup, id, say
        self.member = setup.file.member(id, "workers")
        self.kind: Literal["honest", "byzantine"] = kind or self.member.type
        server = setup.file.server
        assert server is not None
        host = f"[{server.host}]" if ":" in server.host else server.host
        self.url = f"tcp://{host}:{server.port}"
        self.network = TcpNetwork(
            id,
            setup.graph,
            setup.contract,
            {"step": contract.vector, "init": contract.state, "stop": contract.nothing},
            {"step": self._step_came, "init": self._init_came, "stop": self._stop_came},
            dial={SERVER: self.url},
            names=setup.names,
            keys=setup.keys_of(self.member.keys),
            plain=setup.plain,
            on_link=self._linked,
            on_end=self._left,
            on_trouble=self._trouble,
            give_up=True,
        )
        self.shared = Run(
            lambda: self.network.topology,
            frozenset(each.id for each in setup.members),
            setup.f,
            SERVER,
            seed=setup.file.training.seed,
        )
        self._pace = Pace()
        self._node: ActorRef | None = None
        self._session: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._asked, self._hinted, self._rounds = False, False, 0
        self._over: asyncio.Future[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    async def run(self) -> Outcome:
        """Raises FederationError if the server refuses this worker, or cannot be reached for `patience` seconds."""
        self._over = asyncio.get_running_loop().create_future()
        async with await spawn(lambda: self.setup.node(self.member, self.kind)) as self._node, self.network:
            self._wait_for_link()
            lasting = asyncio.create_task(self.network.run())
            try:
                await asyncio.wait([lasting, self._over], return_when=asyncio.FIRST_COMPLETED)
                await (self._over if self._over.done() else lasting)
            finally:
                if self._patience is not None:
                    self._patience.cancel()
                for task in (lasting, self._session, self._stopping):
                    if task is not None:
                        task.cancel()
                        await asyncio.gather(task, return_exceptions=True)
            return Outcome(self._rounds, await self._node.digest(), finite(await self._node.evaluate()))

    # ------------------------------------------------------------------ the link

    def _linked(self, node: NodeId) -> None:
        self.say(f"connected to {self.url}")
        if self._patience is not None:
            self._patience.cancel()

    def _left(self, node: NodeId, why: str) -> None:
        if self._stopping is not None:
            return  # it takes the last steps, and needs nobody for them
        if self._session is not None:
            self._session.cancel()
        if self._over is not None and not self._over.done():
            self.say(f"the server is gone: {why}")
            self._wait_for_link()

    def _trouble(self, where: str, reason: str, pause: float) -> None:
        self.say(f"{reason}; again in {pause:.1f} s" + ("" if self._hinted else f" ({hints(where)})"))
        self._hinted = True

    def _wait_for_link(self) -> None:
        patience = self.setup.file.training.patience

        def over() -> None:
            if self._over is not None and not self._over.done():
                self._over.set_exception(
                    FederationError(f"no link to {self.url} for {patience:g} s (training.patience): {hints(self.url)}")
                )

        self._patience = asyncio.get_running_loop().call_later(patience, over)

    # ------------------------------------------------------------------ messages

    def _init_came(self, envelope: Envelope) -> None:
        """Go on from the server's model, and from its round."""
        assert envelope.round is not None
        if self._stopping is not None:
            return
        previous, self._asked = self._session, False
        if previous is not None:
            previous.cancel()
        self.network.mailbox(self.id).restart(envelope.round)
        self._pace = Pace(envelope.value[0])
        self._session = asyncio.create_task(self._live(envelope.round, envelope.value, previous))

    def _step_came(self, envelope: Envelope) -> None:
        mailbox = self.network.mailbox(self.id)
        assert envelope.round is not None
        if envelope.round <= mailbox.round + AHEAD:
            mailbox.put(envelope)
        elif not self._asked:
            self._asked = True
            self.say(f"{envelope.round - mailbox.round} rounds behind: asking the server for its model")
            self.network.post([SERVER], "sync", None, mailbox.round)

    def _stop_came(self, envelope: Envelope) -> None:
        self._stopping = self._stopping or asyncio.create_task(self._stop(envelope.round or 0))

    async def _stop(self, round: int) -> None:
        """End, once the steps of all rounds before this one are taken."""
        if self._session is not None and not self._session.done():
            finished = asyncio.create_task(self._pace.finished(round - 1, [self.id]))
            await asyncio.wait([finished, self._session], timeout=LAST_STEP, return_when=asyncio.FIRST_COMPLETED)
            finished.cancel()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    # ------------------------------------------------------------------ the program

    async def _live(self, round: int, state: list[Any], previous: asyncio.Task[None] | None) -> None:
        """The worker's program from this round on, after what it did before has ended."""
        assert self._node is not None
        rounds, model, velocity = state
        pace = self._pace
        await pace.jump(self.id, round)
        try:
            if previous is not None:
                await asyncio.gather(previous, return_exceptions=True)
            await self._node.rejoin(round, model, velocity)
            self.say(f"has the server's model, goes on with round {round + 1} of {rounds}")
            await self._tell_digest(round)
            seat = Seat(self.id, self._node, byzantine=self.kind == "byzantine", accomplices=[self.id], knowledge="own")
            performer = Performer(seat, self.shared, self.network, pace, tell=self._tell)

            async def perform(effect: Effect[Any]) -> Any:
                if isinstance(effect, Train | Send) and self.network.mailbox(self.id).holds("step", effect.round):
                    return None  # the round is over: catch up
                outcome = await performer.perform(effect)
                if isinstance(effect, Apply):
                    await self._tell_digest(effect.round + 1)
                return outcome

            await drive(programs.worker(Door(self.id, self.shared)), perform)
        except Stopped:
            pass
        except Exception as error:
            if self._over is not None and not self._over.done():
                self._over.set_exception(error)

    async def _tell_digest(self, round: int) -> None:
        assert self._node is not None
        self._rounds, digest = round, await self._node.digest()
        if SERVER in self.network.lines:
            self.network.post([SERVER], "digest", digest, round)

    def _tell(self, told: Told) -> None:
        if told.error:
            self.say(f"round {told.round + 1}: {told.error}")
