"""What is done about workers that die: noticed by heartbeats and by calls, made again, their state given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from byzflow.actors.ref import ActorRef, answers
from byzflow.errors import ActorError, CheckpointError, FederationError, Stopped, WorkerDied, one_line
from byzflow.federation.detectors import Detector, Timeout
from byzflow.federation.member import Member
from byzflow.gossip.effects import NodeId
from byzflow.gossip.pace import Pace
from byzflow.gossip.performer import ask, can

TOGETHER = 8  # workers that are started at a time


@dataclass(frozen=True)
class Supervision:
    """How nodes on workers are looked after.

    Parameters
    ----------
    max_restarts : how often a node is made again; after that it is lost.
    max_task_retries : how often within one round.
    period : seconds between heartbeats; 0 for none, so that only a call notices a death.
    detector : makes of the period what says when a silent worker counts as dead.
    call_timeout : seconds after which a worker that does not answer a call counts as dead; None to wait for ever.
    start_timeout : seconds that a new worker may take to come up.
    keep_every : rounds between the versions of a node's state that are kept for its restart; 0 keeps none. With 1 a
        node goes on in its round as if nothing had been. Else one of a star waits for the end of the round, and takes
        the model that most others have; in gossip it goes on from its last version, or from its neighbours' models.
    """

    max_restarts: int = 3
    max_task_retries: int = 2
    period: float = 5.0
    detector: Callable[[float], Detector] = Timeout
    call_timeout: float | None = None
    start_timeout: float = 60.0
    keep_every: int = 1

    def __post_init__(self) -> None:
        for name, least in {"max_restarts": 0, "max_task_retries": 0, "period": 0, "keep_every": 0}.items():
            if getattr(self, name) < least:
                raise FederationError(f"{name} must be >= {least}, got {getattr(self, name)!r}")
        for name in ("call_timeout", "start_timeout"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise FederationError(f"{name} must be > 0 seconds, got {value!r}")


class Supervisor:
    """Looks after members. `one_model`: all have the same, so a node with an old one cannot go on within a round."""

    def __init__(self, policy: Supervision, pace: Pace, one_model: bool) -> None:
        self.policy, self.pace, self._one_model = policy, pace, one_model
        self.events: dict[NodeId, str] = {}
        """What befell nodes since the last report."""
        self.kept: dict[NodeId, tuple[int, Mapping[str, Any]]] = {}
        """Rounds done and the state after them, by node."""
        self._deaths: dict[NodeId, tuple[int, int]] = {}
        self._watching: dict[NodeId, asyncio.Task[None]] = {}
        self._burials: set[asyncio.Task[Any]] = set()
        self._closed = False

    # ------------------------------------------------------------------ birth and death

    async def build(self, members: Collection[Member]) -> None:
        """Make the nodes of all members that are only described. If one fails none stays, and its error is raised."""
        free = asyncio.Semaphore(TOGETHER)

        async def build(member: Member) -> None:
            if member.virtual is not None:
                async with free:
                    member.node = await member.virtual.build()

        outcomes = await asyncio.gather(*map(build, members), return_exceptions=True)
        if failed := [each for each in outcomes if isinstance(each, BaseException)]:
            await asyncio.gather(*(member.virtual.aclose() for member in members if member.virtual is not None))
            raise failed[0]

    async def attend(self, member: Member, life: Coroutine[Any, Any, Any]) -> None:
        """Let a node's program run to its end. Raises what it raises, and WorkerDied when `died` was told meanwhile."""
        member.program = asyncio.ensure_future(life)
        try:
            await member.program
        except asyncio.CancelledError:
            if not member.died:
                raise
            raise WorkerDied(member.died) from None

    def died(self, member: Member, node: Any, why: str) -> None:
        """The worker of a member's `node` is dead, or counts so. Nothing happens if another took its place already."""
        if member.node is not node or member.died or not member.here or self._closed:
            return
        member.died = why
        member.ready.clear()
        self._bury(member)  # first: who waits for an answer of its worker cannot be interrupted
        if member.program is not None:
            member.program.cancel()

    async def revive(self, member: Member, why: str) -> bool:
        """Make a member's node again and give it its state.

        True if it goes on in the round that its state is of; False if it has to wait for the end of the round. Raises
        WorkerDied with the reasons if it is lost.
        """
        while True:
            member.died = why
            member.ready.clear()
            self._bury(member)
            if hopeless := self._hopeless(member):
                raise WorkerDied(f"{why}; {hopeless}")
            assert member.virtual is not None
            member.restarts += 1
            try:
                node, ready = await self._again(member)
            except (ActorError, TimeoutError) as error:
                why = f"{why}; then {one_line(error)}"
                continue
            except Exception as error:
                raise WorkerDied(f"{why}; it could not be made again: {one_line(error)}") from None
            self.settle(member, node)
            self.events[member.id] = f"restarted ({member.restarts} of {self.policy.max_restarts}): {why}"
            return ready

    async def _again(self, member: Member) -> tuple[Any, bool]:
        """A new node with its state, and if it goes on in its round. Raises TimeoutError if this takes too long."""

        async def make() -> tuple[Any, bool]:
            assert member.virtual is not None
            node = await member.virtual.build()
            return node, await self._restore(member, node)

        making = asyncio.ensure_future(make())
        try:  # not by cancelling it: who waits for a worker's answer cannot be interrupted
            await asyncio.wait({making}, timeout=self.policy.start_timeout)
        finally:
            if not making.done():
                making.add_done_callback(lambda late: late.cancelled() or late.exception())
                making.cancel()
        if making.cancelled() or not making.done():
            raise TimeoutError(f"no new worker came up within {self.policy.start_timeout:g} s")
        return making.result()

    def settle(self, member: Member, node: Any) -> None:
        """This is the member's node from now on."""
        member.node = node
        if member.performer is not None:
            member.performer.seat.node = node
        member.died = ""
        member.ready.set()
        self.watch(member)

    async def close(self, members: Collection[Member]) -> None:
        """End the watch and all nodes that were built here."""
        self._closed = True
        for member in members:
            member.ready.set()
        for watching in self._watching.values():
            watching.cancel()
        await asyncio.gather(*self._watching.values(), return_exceptions=True)
        self._watching.clear()
        ends = [member.virtual.aclose() for member in members if member.virtual is not None and member.virtual.built]
        await asyncio.gather(*ends, *self._burials, return_exceptions=True)

    async def forget(self, member: Member) -> None:
        """It was removed: end what was built for it."""
        if (watching := self._watching.pop(member.id, None)) is not None:
            watching.cancel()
        self.kept.pop(member.id, None)
        self._deaths.pop(member.id, None)
        if member.virtual is not None:
            await member.virtual.aclose()

    # ------------------------------------------------------------------ calls between rounds

    async def ask(self, member: Member, method: str, round: int) -> Any:
        """A method of a member that is done with a round; None if it is lost. If it dies, the next one is asked."""

        async def once(node: Any) -> Any:
            return await ask(node, method, limit=self.policy.call_timeout)

        return await self.reach(member, once, round)

    async def reach(self, member: Member, call: Callable[[Any], Coroutine[Any, Any, Any]], round: int) -> Any:
        """What `call` makes of the member's node; see `ask`. None if its own code raises, which is told as an event."""
        while member.here and not self._closed:
            node = member.node
            try:
                return await call(node)
            except WorkerDied as death:
                self.died(member, node, str(death))
                await member.ready.wait()
                await self.pace.finished(round, [member.id])
            except (Stopped, CheckpointError):
                raise
            except Exception as error:  # of the node's own code: it costs this node its answer
                self.events[member.id] = one_line(error)
                return None
        return None

    async def keep(self, members: Iterable[Member], done: int) -> None:
        """Keep the state of all nodes that can die, after so many rounds; not of who is late and in another one."""
        if not self.policy.keep_every or done % self.policy.keep_every:
            return

        async def keep(member: Member) -> None:
            state = await self.reach(member, self.state_of, done - 1)
            if state is not None:
                self.kept[member.id] = done, state

        mortal = [member for member in members if member.mortal and member.virtual is not None]
        await asyncio.gather(*(keep(member) for member in mortal if self.done(member, done)))

    def done(self, member: Member, rounds: int) -> bool:
        """If a member has gone through so many rounds."""
        return self.pace.at.get(member.id, rounds) >= rounds

    async def state_of(self, node: Any) -> dict[str, Any] | None:
        """All that a node needs to go on; None of one that has no state."""
        limit = self.policy.call_timeout
        if can(node, "state") and can(node, "load_state"):
            return dict(await ask(node, "state", limit=limit))
        if can(node, "get_parameters") and can(node, "set_parameters"):
            try:
                return {"parameters": await ask(node, "get_parameters", limit=limit)}
            except FederationError:  # a base class that has none
                return None
        return None

    async def give_state(self, node: Any, state: Mapping[str, Any]) -> None:
        """Let a node take up what `state_of` gave."""
        if can(node, "load_state"):
            await ask(node, "load_state", state, limit=self.policy.call_timeout)
        else:
            await ask(node, "set_parameters", state["parameters"], limit=self.policy.call_timeout)

    # ------------------------------------------------------------------ heartbeats

    def watch(self, member: Member) -> None:
        """Heartbeats for a member on a worker, from now on."""
        if self.policy.period and member.mortal:
            if (before := self._watching.pop(member.id, None)) is not None:
                before.cancel()
            self._watching[member.id] = asyncio.create_task(self._watch(member, member.node))

    async def _watch(self, member: Member, node: Any) -> None:
        """Until this node is dead."""
        clock = asyncio.get_running_loop().time
        period = self.policy.period
        detector = self.policy.detector(period)
        last = clock()
        detector.heard(last)
        while member.here and member.node is node:
            await asyncio.sleep(period)
            ping = asyncio.ensure_future(answers(node))
            ping.add_done_callback(lambda late: late.cancelled() or late.exception())
            while not ping.done():
                await asyncio.wait({ping}, timeout=period)
                if not ping.done() and detector.suspects(clock()):
                    self.died(member, node, f"no sign of life for {clock() - last:.2g} s")
                    return
            try:
                await ping
                last = clock()
                detector.heard(last)
            except Exception as error:
                self.died(member, node, one_line(error) if not isinstance(error, WorkerDied) else str(error))
                return

    # ------------------------------------------------------------------ the inside

    def _hopeless(self, member: Member) -> str:
        """Why it is not made again; empty if it is."""
        if member.virtual is None:
            return "only a VirtualNode can be made again"
        round = member.performer.round if member.performer is not None else 0
        before, deaths = self._deaths.get(member.id, (round, 0))
        deaths = deaths + 1 if before == round else 1
        self._deaths[member.id] = round, deaths
        if member.restarts >= self.policy.max_restarts:
            return f"it was restarted {member.restarts} times, which is max_restarts"
        if deaths > self.policy.max_task_retries:
            return f"it died {deaths} times in one round, max_task_retries is {self.policy.max_task_retries}"
        return ""

    def _bury(self, member: Member) -> None:
        """End what is left of a dead node, without waiting for it."""
        if member.virtual is not None:
            handle, member.virtual.handle = member.virtual.handle, None
            ending = member.virtual.end(handle, dead=True)
        elif isinstance(member.node, ActorRef):
            ending = member.node.aclose()
        else:  # an object here, whose own worker died
            return
        burial = asyncio.ensure_future(ending)
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)

    async def _restore(self, member: Member, node: Any) -> bool:
        """Give a new node its state, and its program the round to begin with; false if there is nothing fit."""
        round = 0 if member.performer is None else member.performer.round
        done, state = self.kept.get(member.id, (0, None))
        if state is not None:
            await self.give_state(node, state)
            if done < round and self._one_model:
                return False
            await self.pace.jump(member.id, max(done, round))
            return True
        if await self.state_of(node) is None:  # nothing to lose
            await self.pace.jump(member.id, max(self.pace.at.get(member.id, 0), round))
            return True
        await self.pace.jump(member.id, round)
        return round == 0  # else it is as new, and the others are not
