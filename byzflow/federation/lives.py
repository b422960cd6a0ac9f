"""The programs of a federation's nodes: what each runs on, how it begins, and what its end means for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from byzflow.errors import FederationError, QuorumLost, Stopped, WorkerDied, one_line
from byzflow.federation.member import Member
from byzflow.gossip import programs
from byzflow.gossip.cluster import BETWEEN, cluster
from byzflow.gossip.defence import Defence
from byzflow.gossip.door import Door
from byzflow.gossip.drive import drive
from byzflow.gossip.effects import NodeId
from byzflow.gossip.performer import Performer, Seat
from byzflow.gossip.weights import Weights, mixing

if TYPE_CHECKING:
    from byzflow.federation.federation import Federation

SERVER = "server"
GRACE = 0.2  # seconds that nodes have to end by themselves when a run is stopped
STEPS = {
    "gradients": ("honest_gradient_for_next_batch", "apply_server_gradient"),
    "updates": ("local_update", "apply_server_update"),
    "models": ("half_step", "adopt"),
}
"""What a node's methods are called that make what it sends, and take what comes of all."""


class Lives:
    """One task for each node that is here, and for the centre; they go through the rounds that the pace allows.

    A death is the supervisor's to mend. What it cannot mend costs the node; too few nodes, or an error in a program,
    end the run for all.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self.tasks: dict[NodeId, asyncio.Task[None]] = {}
        self.liars = [member.id for member in federation.members.values() if member.byzantine]
        """Byzantine nodes in their order; all that run see who comes and goes."""
        self.mixing: dict[int, Weights] = {}
        """Mixing weights by the version of the graph, of the last one that was asked for."""
        self.ended = False
        """If somebody stopped the run."""
        self.fault: Exception | None = None
        """Why the run ended by itself, the first reason; None if it did not."""
        self._performers: dict[NodeId, Performer] = {}
        self._remembered: dict[NodeId, dict[str, Any]] = {}

    # ------------------------------------------------------------------ beginning

    def begin_all(self, done: int) -> None:
        """Let all programs begin, after so many rounds."""
        for member in self._federation.members.values():
            if member.here:
                self.begin(member, done)
        if self._federation.centre:
            self.begin(Member(SERVER, self._federation.server or _NoModel()), done)

    def begin(self, member: Member, done: int) -> None:
        """Let a member's program begin, after so many rounds."""
        federation = self._federation
        aggregates = member.id == SERVER or not federation.centre
        defence = self._rule() if aggregates else None
        if defence is not None:
            defence.state = self._remembered.pop(member.id, {})
        patience = federation.patience
        member.performer = Performer(
            self._seat(member),
            federation.shared,
            federation.network,
            federation.pace,
            defence if member.performer is None else member.performer.defence,
            federation.witness,
            federation.observer.hear,
            patience if aggregates or patience is None else 2 * patience,  # the centre waits itself
            federation.actor_pool,
            self._weights if not federation.centre else None,
            {} if federation.grouping is None else {BETWEEN: Defence(federation.grouping.plan.between)},
            ledger=None if defence is None or federation.ledgers is None else federation.ledgers.of_node(member.id),
            limit=federation.supervisor.policy.call_timeout,
            again=member.mortal,
        )
        member.performer.round = done
        federation.network.mailbox(member.id).begin(done)
        federation.pace.at[member.id] = done - 1
        self._performers[member.id] = member.performer
        self.tasks[member.id] = asyncio.create_task(self._live(member))
        federation.supervisor.watch(member)

    def memory(self) -> dict[NodeId, dict[str, Any]]:
        """What the rule of each node that aggregates remembers."""
        return {id: each.defence.state for id, each in self._performers.items() if each.defence is not None}

    def remember(self, memory: dict[NodeId, dict[str, Any]]) -> None:
        """What the rules remember, before they begin."""
        self._remembered = memory

    def _seat(self, member: Member) -> Seat:
        federation = self._federation
        train, take = STEPS[federation.exchange if federation.centre else "models"]
        ignored = member.byzantine and not federation.update_byzantines
        taken = None if ignored else take
        return Seat(member.id, member.node, train, taken, member.byzantine, self.liars, federation.knowledge)

    def _rule(self) -> Defence:
        defence = Defence(self._federation.defence, self._federation.f)
        defence.sample_weights = self._federation.weights
        defence.recorded = self._federation.ledgers is not None
        return defence

    def _weights(self, id: NodeId, round: int) -> Mapping[NodeId, float]:
        graph = self._federation.shared.at(round)
        if graph.version not in self.mixing:
            self.mixing = {graph.version: mixing(graph)}
        return self.mixing[graph.version].around(id)

    def _program(self, id: NodeId) -> Callable[[Door], Coroutine[Any, Any, None]]:
        if self._federation.centre:
            return programs.server if id == SERVER else programs.worker
        return programs.peer if self._federation.grouping is None else cluster

    # ------------------------------------------------------------------ living, and being lost

    async def _live(self, member: Member) -> None:
        """Run a node's program to its end, whatever befalls the node."""
        federation = self._federation
        performer, door = member.performer, Door(member.id, federation.shared)
        assert performer is not None
        program = self._program(member.id)
        try:
            while True:
                try:
                    await federation.supervisor.attend(member, drive(program(door), performer.perform))
                    break
                except WorkerDied as death:
                    if not await federation.supervisor.revive(member, str(death)):
                        await self._away(member)
                        break
        except Stopped:
            pass
        except WorkerDied as death:
            await self._lose(member, str(death))
        except QuorumLost as error:
            if federation.centre and member.id != SERVER:  # it fell so far behind that it cannot catch up
                await self._lose(member, str(error))
            else:
                await self._fail(error)
        except Exception as error:
            await self._fail(FederationError(f"node {member.id}: {one_line(error)}"))
        finally:
            await federation.pace.leave([member.id])

    async def _away(self, member: Member) -> None:
        """It takes no part in what is left of this round."""
        member.away = True
        self._federation.network.lose(member.id)
        await self._federation.witness.gone(member.id)

    async def _lose(self, member: Member, why: str) -> None:
        """A node is gone for good; the others go on while they are enough."""
        federation = self._federation
        member.lost = why
        member.ready.set()
        federation.supervisor.events[member.id] = f"lost: {why}"
        federation.network.lose(member.id)
        await federation.witness.gone(member.id)
        alive = [each for each in federation.members.values() if not each.lost and each.trains()]
        least = max(federation.min_nodes, 1 if federation.centre else 2)
        if len(alive) < least or member.id == SERVER:
            await self._fail(
                FederationError(f"{member.id} is lost ({why}); {len(alive)} training nodes are left, of at least "
                                f"{least}: stopped after {len(federation.history)} rounds")
            )  # fmt: skip

    async def _fail(self, error: Exception) -> None:
        """End the run; the first reason is the one that is told."""
        self.fault = self.fault or error
        await self._federation.pace.stop()
        self._federation.network.stop()

    # ------------------------------------------------------------------ ending

    async def end(self) -> set[asyncio.Task[None]]:
        """End all programs; those that are still busy in a node's own code, which may never end, are cancelled."""
        self.ended = True
        await self._federation.pace.stop()
        self._federation.network.stop()
        busy: set[asyncio.Task[None]] = set()
        if self.tasks:
            _, busy = await asyncio.wait(self.tasks.values(), timeout=GRACE)
        for task in busy:
            task.cancel()
        return busy


class _NoModel:
    """The centre of a star that only aggregates."""

    def apply_server_gradient(self, step: Any) -> None:
        """Nothing to move."""

    apply_server_update = apply_server_gradient
