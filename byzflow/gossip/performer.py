"""Performs the effects of one node's program: the only place where programs meet networks, clocks and models."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from byzflow.errors import Stopped, WorkerDied, one_line
from byzflow.gossip.defence import NO_VECTOR, Defence, Verdict, is_vector
from byzflow.gossip.door import Run
from byzflow.gossip.effects import (
    Adopt,
    Aggregate,
    Apply,
    Effect,
    Heard,
    NodeId,
    Now,
    Recv,
    SamplePeers,
    Send,
    Sleep,
    Train,
    Turn,
)
from byzflow.gossip.network import Network
from byzflow.gossip.pace import Pace
from byzflow.gossip.witness import Witness
from byzflow.graph.subtask import Pool
from byzflow.ledger import Ledger

LIES = {
    "update": ("lie", "update"),
    "half": ("half_lie", "half"),
    "head": ("half_lie", "half"),
    "mixed": ("half_lie", "half"),
}
"""Types of message in which a Byzantine node lies: its method that makes what it says, and of which messages."""
GOSSIP = "adopt"
"""What nodes that mix models take a mixed one by."""
HASTE = 0.9  # of the deadline, at which attackers stop waiting for late honest nodes


@dataclass
class Seat:
    """One node as the runtime sees it.

    `node` is an object here or on a worker (`ActorRef`); `train` and `take` name its methods that make what it has to
    say in a round, and take what comes of all. `accomplices` are the Byzantine nodes in their order, which tells each
    of them its place. A `take` of None: nothing is given to it.
    """

    id: NodeId
    node: Any
    train: str = "honest_gradient_for_next_batch"
    take: str | None = "apply_server_gradient"
    byzantine: bool = False
    accomplices: Sequence[NodeId] = ()
    knowledge: str = "omniscient"


@dataclass(frozen=True)
class Told:
    """What happened at one node in one round."""

    node: NodeId
    round: int
    verdict: Verdict | None = None
    error: str = ""
    heard: Heard | None = None
    stage: str = ""


def can(node: Any, method: str) -> bool:
    """If a node, here or on a worker, has this method."""
    return callable(getattr(node, method, None))


async def ask(node: Any, method: str, *arguments: Any, limit: float | None = None) -> Any:
    """A method of a node that is an object here or on a worker; its result is awaited where it must be.

    A worker that does not answer within `limit` seconds counts as dead: WorkerDied. What it was asked then ends with
    its connection, which is the caller's to close.
    """
    outcome = getattr(node, method)(*arguments)
    if not inspect.isawaitable(outcome):
        return outcome
    if limit is None:
        return await outcome
    answer = asyncio.ensure_future(outcome)
    try:
        await asyncio.wait({answer}, timeout=limit)
    except asyncio.CancelledError:
        answer.cancel()
        raise
    if answer.done():
        return answer.result()
    answer.add_done_callback(lambda late: late.cancelled() or late.exception())
    raise WorkerDied(f"no answer to {method} within {limit:g} s")


@dataclass
class Performer:
    """The effects of one seat. `tell` hears of each verdict and each error; `patience` (seconds) bounds each wait."""

    seat: Seat
    run: Run
    network: Network
    pace: Pace
    defence: Defence | None = None
    witness: Witness | None = None
    tell: Callable[[Told], None] = lambda told: None
    patience: float | None = None
    pool: Pool | None = None
    """Where the rule is computed; here if None."""
    mixing: Callable[[NodeId, int], Mapping[NodeId, float]] | None = None
    """The mixing weights of a node's neighbours in a round, for rules that take them."""
    stages: Mapping[str, Defence] = field(default_factory=dict)
    """The rules of a program that has more than `defence`."""
    ledger: Ledger | None = None
    """Where each aggregation is written down, if it is."""
    limit: float | None = None
    """Seconds after which a node's worker that does not answer counts as dead."""
    again: bool = False
    """If what a round brought is kept until the next, for a node that may die and begin the round anew."""
    round: int = field(default=0, init=False)
    _made: dict[tuple[str, int], Any] = field(default_factory=dict, init=False)
    _heard: dict[tuple[str, int], Heard] = field(default_factory=dict, init=False)
    _sent: set[tuple[str, int]] = field(default_factory=set, init=False)

    async def perform(self, effect: Effect[Any]) -> Any:
        """The effect's outcome."""
        match effect:
            case Turn():
                return await self._turn()
            case Train():
                return await self._train(effect.round)
            case Send():
                await self._send(effect.to, effect.type, effect.value, effect.round)
            case Recv():
                return await self._recv(effect)
            case Aggregate():
                return await self._aggregate(effect)
            case Apply():
                await self._take(effect.step, effect.round)
            case Adopt():
                await self._take(effect.model, effect.round)
            case SamplePeers():
                others = [node for node in self.run.at(effect.round).nodes if node != self.seat.id]
                stream = Random(f"{self.run.seed}/peers/{self.seat.id}/{effect.round}")
                return tuple(stream.sample(others, effect.count))
            case Sleep():
                await asyncio.sleep(effect.seconds)
            case Now():
                return asyncio.get_running_loop().time()
            case _:
                raise TypeError(f"no runtime performs {type(effect).__name__}")
        return None

    async def _turn(self) -> int | None:
        turn = await self.pace.turn(self.seat.id)
        if turn is not None:
            if turn != self.round:
                self._made.clear()
                self._heard.clear()
                self._sent.clear()
            self.round = turn
            self.network.mailbox(self.seat.id).begin(turn)
        return turn

    async def _recv(self, effect: Recv) -> Heard:
        """What was heard; the same again in a round that begins anew because the node's worker died."""
        key = (effect.type, effect.round)
        if key not in self._heard:
            mailbox = self.network.mailbox(self.seat.id)
            over = self.pace.skips and self.pace.over > effect.round
            quorum, deadline = (0, 0.0) if over else (effect.quorum, effect.deadline)
            self._heard[key] = await mailbox.collect(*key, effect.senders, quorum, deadline, self.patience)
        return self._heard[key]

    async def _train(self, round: int) -> Any:
        """The node's vector; None if it has none, or its code failed, which is told and costs this round alone.

        Where the round begins anew, the node takes its step again, and what it said the first time stands.
        """
        if self.seat.byzantine:
            return None  # what it sends is made when it sends, of what it sees then
        if self.pace.over > round and ("train", round) not in self._made:
            return None  # it would come too late: this node catches up
        try:
            made = self._vector(await self._ask(self.seat.train), round)
            return self._made.setdefault(("train", round), made) if self.again else made
        except (WorkerDied, Stopped):
            raise
        except Exception as error:
            self.tell(Told(self.seat.id, round, error=one_line(error)))
            return None

    async def _send(self, to: Sequence[NodeId], type: str, value: Any, round: int) -> None:
        if (type, round) in self._sent:
            return
        if type in LIES and self.seat.byzantine:
            for receivers, lie in await self._lies(to, type, round):
                await self.network.send(self.seat.id, receivers, type, lie, round)
        else:
            if type in LIES and LIES[type][1] == type and self.witness is not None:
                await self.witness.show(type, round, self.seat.id, value)
            await self.network.send(self.seat.id, to, type, value, round)
        self._sent.add((type, round))

    async def _lies(self, to: Sequence[NodeId], type: str, round: int) -> list[tuple[tuple[NodeId, ...], Any]]:
        """What to send to whom. Receivers who hear the same honest nodes are told the same."""
        method, seen = LIES[type]
        liars = set(self.seat.accomplices)
        told: dict[tuple[NodeId, ...], list[NodeId]] = {}
        for receiver in to:
            honest = tuple(
                node
                for node in self.run.at(round).in_neighbours(receiver)
                if node not in liars and node in self.run.sampled(round)
            )
            told.setdefault(honest if self.seat.knowledge == "omniscient" else (), []).append(receiver)
        lies = []
        for honest, receivers in told.items():
            rows: list[Any] = []
            if self.witness is not None and honest:
                patience = self.patience if self.run.deadline is None else HASTE * self.run.deadline
                rows = await self.witness.honest(seen, round, honest, patience)
            try:
                lie = await self._ask(method, rows, self.place, len(self.seat.accomplices))
            except (WorkerDied, Stopped):
                raise
            except Exception as error:
                self.tell(Told(self.seat.id, round, error=one_line(error)))
                lie = None
            lies.append((tuple(receivers), lie))
        return lies

    @property
    def place(self) -> int:
        """This node's place among the Byzantine ones."""
        return list(self.seat.accomplices).index(self.seat.id)

    async def _aggregate(self, effect: Aggregate) -> Any:
        defence = self.stages.get(effect.stage, self.defence)
        assert defence is not None
        key = (f"verdict {effect.stage}", effect.round)
        if key in self._made:  # the rule's memory took this round already
            return self._made[key].value
        vector = effect.own
        mixes = self.seat.take == GOSSIP and not self.seat.byzantine
        if vector is None and mixes and (defence.needs_own or effect.heard.missing):
            vector = await self._model()
            if vector is None and defence.needs_own:
                verdict = defence.no_own(effect.heard)
                self.tell(Told(self.seat.id, effect.round, verdict, heard=effect.heard, stage=effect.stage))
                return None
        own = None if vector is None else (self.seat.id, vector)
        weights = None if self.mixing is None else self.mixing(self.seat.id, effect.round)
        if self.pool is None:
            verdict = defence.aggregate(effect.heard, own, weights)
        else:
            verdict = await defence.aggregate_on(self.pool, effect.heard, own, weights)
        if self.again:
            self._made[key] = verdict
        if self.ledger is not None and verdict.record is not None:
            record = verdict.record
            self.ledger.record(effect.round, record.operator, record.rows, verdict.value, record.extras)
        self.tell(Told(self.seat.id, effect.round, verdict, heard=effect.heard, stage=effect.stage))
        return verdict.value

    def _vector(self, own: Any, round: int) -> Any:
        """What the node made, if a rule can use it; else None, and what is wrong is told."""
        if own is None or is_vector(own):
            return own
        self.tell(Told(self.seat.id, round, error=f"what it made is {NO_VECTOR}, but {type(own).__name__}"))
        return None

    async def _model(self) -> Any:
        """The node's model, which is its row where it has no half step; None if it does not tell it, or has none."""
        try:
            model = await self._ask("get_parameters")
        except (WorkerDied, Stopped):
            raise
        except Exception:
            return None  # why it has no half step is told already
        return model if is_vector(model) else None

    async def _ask(self, method: str, *arguments: Any) -> Any:
        return await ask(self.seat.node, method, *arguments, limit=self.limit)

    async def _take(self, vector: Any, round: int) -> None:
        """Let the node take a vector, if there is one; an error of its own code is told, and the run goes on."""
        if vector is None or self.seat.take is None:
            return
        try:
            await self._ask(self.seat.take, vector)
        except (WorkerDied, Stopped):
            raise
        except Exception as error:
            self.tell(Told(self.seat.id, round, error=one_line(error)))
