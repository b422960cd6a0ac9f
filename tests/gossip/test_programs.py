"""Programs are coroutines over effects: whoever performs these decides where and when they run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from byzflow.errors import FederationError, NotANeighbour
from byzflow.gossip.door import Door, Run
from byzflow.gossip.drive import drive
from byzflow.gossip.effects import Aggregate, Effect, Heard, Now, Recv, Send, Sleep, Train, Turn
from byzflow.gossip.network import SUPERVISOR, LocalNetwork
from byzflow.gossip.pace import Pace
from byzflow.gossip.performer import Performer, Seat
from byzflow.gossip.programs import peer, server, worker
from byzflow.gossip.topology import Topology, topology


def door(id: Any = 0, centre: Any = None, graph: Any = "ring", n: int = 4, **settings: Any) -> Door:
    read = topology(graph, n)
    assert isinstance(read, Topology)
    return Door(id, Run(lambda: read, frozenset(range(n)) - {centre}, centre=centre, **settings))


async def traced(program: Any, given: Door, answers: dict[type, Any], rounds: int = 1) -> list[Effect[Any]]:
    """The effects that a program asks for when they are answered from a table."""
    effects: list[Effect[Any]] = []

    async def perform(effect: Effect[Any]) -> Any:
        effects.append(effect)
        if isinstance(effect, Turn):
            taken = sum(isinstance(each, Turn) for each in effects)
            return taken - 1 if taken <= rounds else None
        return answers.get(type(effect))

    await drive(program(given), perform)
    return effects


def test_a_peer_trains_speaks_listens_and_mixes() -> None:
    heard = Heard({1: "one", 3: "three"})
    effects = asyncio.run(traced(peer, door(f=1), {Train: "own", Recv: heard, Aggregate: "mixed"}))
    kinds = [type(each).__name__ for each in effects]
    assert kinds == ["Turn", "Train", "Send", "Recv", "Aggregate", "Adopt", "Turn"]
    send, recv, aggregate, adopt = effects[2:6]
    assert isinstance(send, Send)
    assert (send.to, send.value) == ((1, 3), "own")
    assert isinstance(recv, Recv)
    assert (recv.senders, recv.quorum) == ((1, 3), 1)
    assert isinstance(aggregate, Aggregate)
    assert (aggregate.heard, aggregate.own) == (heard, "own")
    assert adopt.model == "mixed"  # type: ignore[attr-defined]


def test_a_server_aggregates_and_a_worker_follows() -> None:
    effects = asyncio.run(traced(server, door(0, centre=0, graph="star"), {Aggregate: "step"}))
    assert [type(each).__name__ for each in effects] == ["Turn", "Recv", "Aggregate", "Apply", "Send", "Turn"]
    heard = Heard({0: "step"})
    effects = asyncio.run(traced(worker, door(2, centre=0, graph="star"), {Recv: heard, Train: "mine"}))
    assert [type(each).__name__ for each in effects] == ["Turn", "Train", "Send", "Recv", "Apply", "Turn"]
    assert effects[4].step == "step"  # type: ignore[attr-defined]


def test_who_does_not_contribute_or_was_not_sampled_sends_nothing() -> None:
    star = topology("star", 4)
    assert isinstance(star, Topology)
    judge = Door(2, Run(lambda: star, frozenset({1, 3}), centre=0))
    effects = asyncio.run(traced(worker, judge, {Recv: Heard({0: "step"})}))
    assert [type(each).__name__ for each in effects] == ["Turn", "Recv", "Apply", "Turn"]
    few = Run(lambda: star, frozenset({1, 2, 3}), centre=0, fraction=0.34, seed=7)
    drawn = [few.sampled(t) for t in range(30)]
    assert all(len(each) == 1 for each in drawn)
    assert len(set(drawn)) == 3
    assert drawn == [
        Run(lambda: star, frozenset({3, 2, 1}), centre=0, fraction=0.34, seed=7).sampled(t) for t in range(30)
    ]


def test_a_program_may_await_effects_alone_and_gets_their_errors() -> None:
    async def wrong(door: Door) -> None:
        await asyncio.sleep(0)

    async def nothing(effect: Effect[Any]) -> None:
        return None

    with pytest.raises(TypeError, match="only await effects"):
        asyncio.run(drive(wrong(door()), nothing))

    async def brave(door: Door) -> str:
        try:
            await door.now()
        except OSError as error:
            return f"caught {error}"
        return "nothing came"

    async def failing(effect: Effect[Any]) -> None:
        raise OSError("no clock")

    assert asyncio.run(drive(brave(door()), failing)) == "caught no clock"
    with pytest.raises(FederationError, match="no centre"):
        _ = door().centre


def test_edges_are_checked_at_both_ends_and_the_supervisor_reaches_all() -> None:
    async def main() -> None:
        line = topology([("a", "b"), ("b", "c")])
        network = LocalNetwork(line)
        with pytest.raises(NotANeighbour, match="a may not send to c; its neighbours are b"):
            await network.send("a", ["c"], "half", 1, 0)
        from byzflow.gossip.envelope import Envelope

        network.deliver("c", Envelope("half", "a", 1, 0))  # a sender that skips its own check
        assert network.mailbox("c").refused == {"a": {"not a neighbour": 1}}
        network.supervise("news", "all")
        assert [(await network.mailbox(node).take()).sender for node in line.nodes] == [SUPERVISOR] * 3
        with pytest.raises(FederationError, match="no node 'd'"):
            network.supervise("news", 1, ["d"])

    asyncio.run(main())


def test_one_send_is_made_ready_once_however_many_hear_it() -> None:
    async def main() -> None:
        network = LocalNetwork(topology("full", 9))
        await network.send(0, list(range(1, 9)), "half", "value", 0)
        assert (network.traffic.serialised, network.traffic.delivered) == (1, 8)

    asyncio.run(main())


def test_another_graph_counts_at_once_for_both_ends() -> None:
    async def main() -> None:
        network = LocalNetwork(topology("ring", 5))
        await network.send(0, [1], "half", "before", 0)
        network.topology = network.topology.changed(add=[(0, 2)], remove=[(0, 1)])
        await network.send(0, [2], "half", "after", 0)
        with pytest.raises(NotANeighbour):
            await network.send(0, [1], "half", "again", 1)
        assert (await network.mailbox(2).collect("half", 0, [0], 1)).values == {0: "after"}
        assert (await network.mailbox(1).collect("half", 0, [0], 1)).values == {0: "before"}

    asyncio.run(main())


def test_rounds_begin_when_the_owner_lets_them() -> None:
    async def main() -> None:
        pace = Pace()
        pace.join("a")
        turns: list[int | None] = []

        async def run() -> None:
            while (turn := await pace.turn("a")) is not None:
                turns.append(turn)
            turns.append(None)

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        assert turns == []
        await pace.allow(2)
        await pace.finished(1, ["a"])
        assert turns == [0, 1]
        await pace.stop()
        await task
        assert turns == [0, 1, None]

    asyncio.run(main())


def test_time_and_samples_are_effects_too() -> None:
    async def main() -> None:
        network = LocalNetwork(topology("ring", 6))
        run = Run(lambda: network.topology, frozenset(range(6)))
        performer = Performer(Seat(0, object()), run, network, Pace())
        assert await performer.perform(Now()) <= await performer.perform(Now())
        await performer.perform(Sleep(0.0))
        drawn = await performer.perform(Door(0, run).sample_peers(3, 4))
        assert len(set(drawn)) == 4
        assert 0 not in drawn
        assert drawn == await performer.perform(Door(0, run).sample_peers(3, 4))
        with pytest.raises(TypeError, match="no runtime performs Effect"):
            await performer.perform(Effect())

    asyncio.run(main())
