"""Nodes on workers that die, hang, freeze, come and go: what is left learns on, to the bit where that was promised."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from byzflow.errors import FederationError, MessageTimeout, Stopped
from byzflow.federation.detectors import PhiAccrual, Timeout
from byzflow.federation.federation import Federation
from byzflow.federation.rewire import joined, without
from byzflow.federation.supervision import Supervision
from byzflow.federation.virtual_node import VirtualNode
from byzflow.gossip.performer import ask
from byzflow.gossip.topology import Topology, topology
from tests.federation.mortal import Mortal, children, descriptors

NO_BEATS = Supervision(period=0)

OTHERS: set[int] = set()
"""Processes that other tests of this process keep, such as multiprocessing's own."""


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.clear()
    OTHERS.update(children())


def virtual(n: int, backend: str, folder: Any, deaths: dict[int, tuple[str, ...]], **more: Any) -> list[VirtualNode]:
    return [
        VirtualNode(
            Mortal,
            k,
            "train-eval",
            kwargs={"folder": str(folder), "deaths": deaths.get(k, ()), **more},
            backend=backend,
        )
        for k in range(n)
    ]


async def straight(n: int, graph: str, rounds: int, defence: str = "mean") -> list[dict[str, Any]]:
    """The states that an undisturbed run ends with."""
    nodes = [Mortal(k) for k in range(n)]
    async with Federation(nodes, graph, defence) as federation:
        await federation.run(rounds)
    return [node.state() for node in nodes]


async def states(federation: Federation) -> list[dict[str, Any]]:
    return [await ask(federation[id], "state") for id in federation.node_ids]


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return [{k: str(v) for k, v in each.items()} for each in one] == [
        {k: str(v) for k, v in each.items()} for each in other
    ]


@pytest.mark.parametrize(
    "moment",
    ["honest_gradient:2", "apply_server_gradient:2", "evaluate:2", "digest:2", "state:3"],
)
def test_a_killed_worker_of_a_star_leaves_no_trace_in_the_models(tmp_path: Any, moment: str) -> None:
    async def main() -> None:
        nodes = virtual(2, "inline", tmp_path, {}) + virtual(3, "process:", tmp_path, {2: (moment,)})[2:]
        async with Federation(nodes, "star", "mean", supervision=NO_BEATS) as federation:
            history = await federation.run(4)
            assert federation.members[2].restarts == 1
            assert same(await states(federation), await straight(3, "star", 4))
        assert all(len(report.digests) == 1 for report in history)
        assert next(report.events for report in history if report.events).keys() == {2}

    asyncio.run(main())
    assert not children() - OTHERS


@pytest.mark.parametrize("moment", ["honest_gradient:2", "set_parameters:2", "state:3"])
def test_a_killed_peer_leaves_no_trace_in_the_models(tmp_path: Any, moment: str) -> None:
    async def main() -> None:
        nodes = virtual(3, "inline", tmp_path, {}) + virtual(4, "process:", tmp_path, {3: (moment,)})[3:]
        async with Federation(nodes, "ring", "centered_clipping(tau=1)", supervision=NO_BEATS) as federation:
            await federation.run(4)
            assert federation.members[3].restarts == 1
            expected = await straight(4, "ring", 4, "centered_clipping(tau=1)")
            assert same(await states(federation), expected)

    asyncio.run(main())


def test_kill_9_of_one_of_five_process_nodes(tmp_path: Any) -> None:
    """By somebody else, in the middle of a round: noticed, made again, and the models are those of a quiet run."""

    async def main() -> None:
        before = descriptors()
        nodes = virtual(5, "process:", tmp_path, {})
        watched = Supervision(period=0.2, detector=lambda period: Timeout(period, 50))
        async with Federation(nodes, "star", "mean", supervision=watched) as federation:
            await federation.run(2)
            pid = await federation[3].pid()
            running = asyncio.create_task(federation.run(3))
            os.kill(pid, signal.SIGKILL)
            await running
            assert len(federation.history) == 5
            assert federation.members[3].restarts == 1
            assert await federation[3].pid() != pid
            assert same(await states(federation), await straight(5, "star", 5))
        assert descriptors() <= before + 1
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert not children() - OTHERS


def test_a_death_between_rounds_is_noticed_within_two_heartbeats(tmp_path: Any) -> None:
    async def main() -> None:
        nodes = virtual(2, "inline", tmp_path, {}) + virtual(3, "process:", tmp_path, {})[2:]
        watched = Supervision(period=0.5, detector=lambda period: Timeout(period, 20))
        async with Federation(nodes, supervision=watched) as federation:
            await federation.run(1)
            member = federation.members[2]
            os.kill(await member.node.pid(), signal.SIGKILL)
            began = time.monotonic()
            while not member.died and time.monotonic() - began < 5:
                await asyncio.sleep(0.005)
            assert time.monotonic() - began < 2 * 0.5
            await federation.run(1)
            assert member.restarts == 1

    asyncio.run(main())


def test_a_frozen_worker_counts_as_dead(tmp_path: Any) -> None:
    async def main() -> None:
        nodes = virtual(2, "inline", tmp_path, {}) + virtual(3, "process:", tmp_path, {})[2:]
        watched = Supervision(period=0.2, detector=lambda period: Timeout(period, 8))
        async with Federation(nodes, supervision=watched) as federation:
            await federation.run(1)
            os.kill(await federation[2].pid(), signal.SIGSTOP)
            await federation.run(3)
            assert federation.members[2].restarts >= 1
            assert same(await states(federation), await straight(3, "star", 4))

    asyncio.run(main())
    assert not children() - OTHERS


@pytest.mark.parametrize("backend", ["process:", "thread:"])
def test_a_call_that_never_returns_counts_as_a_death(tmp_path: Any, backend: str) -> None:
    async def main() -> None:
        nodes = virtual(2, "inline", tmp_path, {})
        nodes += virtual(3, backend, tmp_path, {2: ("apply_server_gradient:2",)}, hangs=backend == "process:")[2:]
        if backend == "thread:":
            nodes[2] = VirtualNode(Sleeper, 2, "train-eval", kwargs={"folder": str(tmp_path)}, backend=backend)
        policy = Supervision(period=0, call_timeout=1.0)
        async with Federation(nodes, supervision=policy) as federation:
            await federation.run(3)
            assert federation.members[2].restarts == 1
            assert same(await states(federation), await straight(3, "star", 3))

    asyncio.run(main())
    assert not children() - OTHERS


class Sleeper(Mortal):
    """Hangs once, where it can be let go: threads cannot be killed."""

    async def apply_server_gradient(self, gradient: Any) -> None:  # type: ignore[override]
        self.deaths = ()
        self.calls["apply"] = self.calls.get("apply", 0) + 1
        try:
            (__import__("pathlib").Path(self.folder) / "slept").touch(exist_ok=False)
        except FileExistsError:
            return super().apply_server_gradient(gradient)
        await asyncio.sleep(3600)


def test_a_star_without_kept_versions_takes_the_majoritys_model(tmp_path: Any) -> None:
    async def main() -> None:
        nodes = virtual(3, "inline", tmp_path, {})
        nodes += virtual(4, "process:", tmp_path, {3: ("honest_gradient:3",)})[3:]
        policy = Supervision(period=0, keep_every=0)
        async with Federation(nodes, supervision=policy) as federation:
            history = await federation.run(5)
            assert history[2].connected == (0, 1, 2)
            assert history[3].connected == (0, 1, 2, 3)
            assert len(history[4].digests) == 1
            assert history[4].weights.keys() == {0, 1, 2, 3}

    asyncio.run(main())


def test_two_of_five_peers_are_lost_and_the_others_go_on(tmp_path: Any) -> None:
    async def main() -> None:
        nodes = virtual(3, "inline", tmp_path, {})
        nodes += virtual(5, "process:", tmp_path, {3: ("honest_gradient:2",), 4: ("set_parameters:3",)})[3:]
        policy = Supervision(period=0, max_restarts=0)
        async with Federation(nodes, "ring", "mean", supervision=policy, min_nodes=3, patience=10) as federation:
            history = await federation.run(5)
            assert history[-1].connected == (0, 1, 2)
            assert set(federation.topology.edges) == {(0, 1), (1, 2), (0, 2)}
            assert "lost" in history[1].events[3]
            assert "max_restarts" in history[2].events[4]
            assert federation.num_nodes == 5

    asyncio.run(main())
    assert not children() - OTHERS


def test_below_min_nodes_the_run_stops_and_says_so(tmp_path: Any) -> None:
    async def main() -> None:
        nodes = virtual(2, "inline", tmp_path, {})
        nodes += virtual(3, "process:", tmp_path, {2: ("honest_gradient:3",)})[2:]
        policy = Supervision(period=0, max_restarts=0)
        federation = Federation(nodes, supervision=policy, min_nodes=3)
        with pytest.raises(FederationError, match=r"2 is lost .* 2 training nodes are left, of at least 3") as error:
            await federation.run(5)
        assert "stopped after 2 rounds" in str(error.value)
        assert len(federation.history) == 2
        assert not federation.running
        await federation.stop()
        with pytest.raises(FederationError, match=r"was stopped: .*is lost"):
            await federation.round()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert not children() - OTHERS


def test_one_that_dies_again_and_again_is_lost(tmp_path: Any) -> None:
    async def main() -> None:
        moments = tuple(f"honest_gradient:{k}" for k in range(1, 9))
        for policy, restarts, why in [
            (Supervision(period=0, max_restarts=1, max_task_retries=5), 1, "max_restarts"),
            (Supervision(period=0, max_restarts=5, max_task_retries=0), 0, "max_task_retries is 0"),
        ]:
            folder = tmp_path / why
            folder.mkdir()
            nodes = virtual(2, "inline", folder, {}) + virtual(3, "process:", folder, {2: moments})[2:]
            async with Federation(nodes, supervision=policy) as federation:
                history = await federation.run(2)
                assert federation.members[2].restarts == restarts
                assert why in federation.members[2].lost
                assert history[-1].connected == (0, 1)

    asyncio.run(main())


def test_nodes_that_share_a_worker_die_and_come_back_together(tmp_path: Any) -> None:
    async def main() -> None:
        nodes = [VirtualNode(Mortal, k, "train-eval") for k in range(6)]
        async with Federation(nodes, supervision=NO_BEATS, backend="process:", workers=2) as federation:
            await federation.run(2)
            pids = [await federation[k].pid() for k in range(6)]
            assert len(set(pids)) == 2
            os.kill(pids[0], signal.SIGKILL)
            await federation.run(2)
            assert [federation.members[k].restarts for k in range(6)] == [int(pid == pids[0]) for pid in pids]
            assert same(await states(federation), await straight(6, "star", 4))

    asyncio.run(main())
    assert not children() - OTHERS


def test_nodes_come_and_go_in_a_star() -> None:
    async def main() -> None:
        async with Federation([Mortal(0), Mortal(1)]) as federation:
            await federation.run(2)
            running = asyncio.create_task(federation.run(4))
            await asyncio.sleep(0)
            await federation.add("late", Mortal(2))
            await federation.remove(0)
            history = await running
            assert len(history) == 6
            assert history[-1].connected == (1, "late")
            assert len(history[-1].digests) == 1
            assert history[-1].weights == {1: 0.5, "late": 0.5}
            assert federation.node_ids == (1, "late")
            with pytest.raises(FederationError, match="already"):
                await federation.add("late", Mortal(2))
            with pytest.raises(FederationError, match="no node 0"):
                await federation.remove(0)
            await federation.remove(1)
            with pytest.raises(FederationError, match="of at least 1"):
                await federation.remove("late")
            assert federation.network.traffic.refused == 0

    asyncio.run(main())


def test_nodes_come_and_go_in_a_ring_and_edges_change_in_mid_run() -> None:
    async def main() -> None:
        nodes = [Mortal(k) for k in range(5)]
        async with Federation(nodes, "ring", "mean", patience=5) as federation:
            running = asyncio.create_task(federation.run(12))
            await asyncio.sleep(0)
            await federation.add(5, Mortal(5))
            assert set(federation.topology.neighbours(5)) == {0, 4}
            await federation.remove(2)
            assert {federation.topology.degree(id) for id in federation.node_ids} == {2}
            version = federation.topology.version
            await asyncio.sleep(0)
            federation.topology = topology("full", federation.node_ids)
            assert len(await running) == 12
            assert federation.topology.version > version
            assert federation.topology.degree(0) == 4
            assert federation.network.traffic.refused == 0
            assert federation.network.traffic.sent == federation.network.traffic.delivered

    asyncio.run(main())


def test_a_newcomer_of_gossip_starts_from_its_neighbours_models() -> None:
    async def main() -> None:
        for node in (nodes := [Mortal(0) for _ in range(4)]):
            node.lr = 0.0
            node.x += 7.0
        newcomer = Mortal(0)
        newcomer.lr = 0.0
        async with Federation(nodes, "full", "median") as federation:
            await federation.run(1)
            await federation.add("new", newcomer)
            assert newcomer.x.tolist() == [7.0] * 4
            await federation.run(1)
            assert federation.history[-1].events == {"new": "added"}

    asyncio.run(main())


def test_a_federations_state_in_all_its_states() -> None:
    async def main() -> None:
        federation = Federation([VirtualNode(Mortal, k) for k in range(3)])
        assert (federation.running, federation.num_nodes, federation.node_ids) == (False, 3, (0, 1, 2))
        assert not federation[1].built
        await federation.run(1)
        assert federation.running
        assert isinstance(federation[1], Mortal)
        await federation.stop()
        assert not federation.running
        await federation.stop()
        with pytest.raises(FederationError, match="was stopped; make another"):
            await federation.round()
        early = Federation([Mortal(0)])
        await early.stop()
        await early.stop()
        assert not early.running

    asyncio.run(main())


def test_a_frozen_worker_holds_up_neither_who_reads_versions_nor_the_end(tmp_path: Any) -> None:
    async def main() -> None:
        federation = Federation(virtual(2, "process:", tmp_path, {}), supervision=NO_BEATS)
        await federation.run(1)
        os.kill(await federation[1].pid(), signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(MessageTimeout, match=r"no version of 1 within 0.5 s"):
            await federation.pull_version([0, 1], timeout=0.5)
        assert time.monotonic() - began < 3
        running = asyncio.create_task(federation.run(1))
        await asyncio.sleep(0.1)
        await federation.stop()
        await asyncio.wait({running}, timeout=5)
        assert running.done()
        assert isinstance(running.exception(), Stopped)
        assert len(federation.history) == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert not children() - OTHERS


def test_if_one_node_cannot_be_built_none_stays(tmp_path: Any) -> None:
    async def main() -> None:
        nodes = [*virtual(2, "process:", tmp_path, {}), VirtualNode(Unborn, 2, backend="process:")]
        federation = Federation(nodes)
        with pytest.raises(OSError, match="no data"):
            await federation.run(1)
        assert not any(node.built for node in nodes)
        assert not children() - OTHERS
        await federation.stop()
        shared = [VirtualNode(Mortal, 0), VirtualNode(Unborn, 1)]
        with pytest.raises(OSError, match="no data"):
            await Federation(shared, backend="process:", workers=1).run(1)
        assert not children() - OTHERS

    asyncio.run(main())
    assert not children() - OTHERS


class Unborn(Mortal):
    def __init__(self) -> None:
        raise OSError("no data")


def test_a_stop_while_the_nodes_are_built_leaves_none(tmp_path: Any) -> None:
    async def main() -> None:
        nodes = virtual(2, "thread:", tmp_path, {})
        federation = Federation(nodes)
        build, may = federation.supervisor.build, asyncio.Event()

        async def slow(members: Any) -> None:
            await may.wait()
            await build(members)

        federation.supervisor.build = slow  # type: ignore[method-assign]
        starting = asyncio.create_task(federation.start())
        await asyncio.sleep(0)
        await federation.stop()
        may.set()
        with pytest.raises(Stopped):
            await starting
        assert not any(node.built for node in nodes)
        assert not federation.running

    asyncio.run(main())


def test_graphs_without_a_node_and_with_one_more() -> None:
    ring = topology("ring", 5)
    assert isinstance(ring, Topology)
    smaller = without(ring, 2)
    assert smaller.version == ring.version + 1
    assert set(smaller.edges) == {(0, 1), (1, 3), (3, 4), (0, 4)}
    assert all(joined(smaller, "x").degree(node) == 2 for node in (0, 1, 3, 4, "x"))
    star = Topology((0, 1, 2, 3), ((0, 1), (0, 2), (0, 3)))
    assert set(without(star, 0).edges) == {(1, 2), (2, 3)}
    assert set(without(star, 0, honest={1, 3}).edges) == {(1, 3)}
    line = Topology((0, 1, 2), ((0, 1), (1, 2)))
    assert set(without(line, 1).edges) == {(0, 2)}
    assert set(without(line, 2).edges) == {(0, 1)}
    directed = Topology((0, 1, 2, 3), ((0, 1), (1, 2), (2, 3), (3, 0)), directed=True)
    assert set(without(directed, 1).edges) == {(0, 2), (2, 3), (3, 0)}
    assert set(joined(directed, 4).edges) == {(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)}
    full = topology("full", 4)
    assert isinstance(full, Topology)
    assert joined(full, 4).degree(4) == 4
    assert set(joined(full, 4, [1]).neighbours(4)) == {1}


def test_detectors_of_silence() -> None:
    timeout = Timeout(1.0, beats=2)
    assert not timeout.suspects(100)
    timeout.heard(10)
    assert not timeout.suspects(11.9)
    assert timeout.suspects(12)
    phi = PhiAccrual(1.0, threshold=8)
    assert phi.phi(5) == 0
    for beat in range(50):
        phi.heard(float(beat))
    assert phi.phi(50.0) < 1
    assert not phi.suspects(50.1)
    assert phi.suspects(52.0)
    irregular = PhiAccrual(1.0)
    for beat in range(50):
        irregular.heard(beat + (0.9 if beat % 2 else 0.0))
    assert not irregular.suspects(52.0)


def test_a_policy_that_cannot_work_is_refused() -> None:
    for wrong in ({"max_restarts": -1}, {"period": -1}, {"call_timeout": 0}):
        with pytest.raises(FederationError, match=next(iter(wrong))):
            Supervision(**wrong)  # type: ignore[arg-type]
