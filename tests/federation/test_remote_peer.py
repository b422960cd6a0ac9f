"""Nodes without a centre, each a process of its own: the gossip program over links."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from byzflow.actors.hub import Hub
from byzflow.actors.wire import Limits
from byzflow.errors import FederationError, QuorumLost
from byzflow.federation import remote
from byzflow.federation.federation import Federation
from byzflow.federation.nodes_file import NodesFile
from byzflow.federation.remote_peer import RemotePeer
from byzflow.gossip.envelope import Envelope
from tests.federation.remote_runs import free_port, process, rounds_in, until, write


def network(honest: int = 4, byzantine: int = 0, topology: str = "full", **training: Any) -> remote.Setup:
    """The set-up of so many peers on free ports of this host."""
    given = {"rounds": 5, "batch_size": 16, "dataset": "synthetic", "model": "softmax", "deadline": 5.0}
    nodes = [
        {"id": id, "host": "127.0.0.1", "port": free_port(), "type": "honest" if id < honest else "byzantine"}
        for id in range(honest + byzantine)
    ]
    plain = {
        "training": given | {"patience": 20.0, "learning_rate": 0.2} | training,
        "aggregation": {"method": "median", "f": 1},
        "topology": topology,
        "nodes": nodes,
    }
    return remote.setup(msgspec.convert(plain, NodesFile), "nodes", Path("nowhere"))


async def together(peers: Sequence[RemotePeer]) -> list[Any]:
    """All at once, to the end."""
    async with asyncio.timeout(60):
        return await asyncio.gather(*(peer.run() for peer in peers))


@pytest.mark.parametrize("topology", ["full", "ring"])
def test_the_same_nodes_come_to_the_same_models_as_in_one_process(topology: str) -> None:
    made = network(honest=4, topology=topology, quorum=3 if topology == "full" else 2)
    outcomes = asyncio.run(together([RemotePeer(made, each.id) for each in made.members]))
    nodes: dict[Any, Any] = {each.id: made.node(each, "honest") for each in made.members}
    Federation(nodes, topology, made.rule, quorum=made.quorum, evaluate_every=0).train(5)
    assert [each.digest for each in outcomes] == [node.digest() for node in nodes.values()]
    assert len({each.digest for each in outcomes}) == (1 if topology == "full" else 4)


@pytest.mark.parametrize(("own", "jumps"), [(0, [2]), (1, [])])
def test_who_hears_that_others_are_done_jumps_to_the_last_round_at_most(own: int, jumps: list[int]) -> None:
    made = network(honest=4, rounds=3)
    begun: list[int] = []

    class Peer(RemotePeer):
        async def _live(self, round: int, previous: Any, jumped: bool = False) -> None:
            begun.append(round)

    async def main() -> None:
        peer = Peer(made, 0)
        peer._node, peer._over = object(), asyncio.get_running_loop().create_future()  # type: ignore[assignment]
        peer.network.mailbox(0).begin(own)
        peer.network.rounds.update({1: 3, 2: 3, 3: 2})  # two of them are done
        peer._half_came(Envelope("half", 3, torch.zeros(made.contract.numbers), 2))
        await asyncio.sleep(0)

    asyncio.run(main())
    assert begun == jumps


def test_it_learns_beside_an_attacker() -> None:
    made = network(honest=4, byzantine=1, rounds=15)
    outcomes = asyncio.run(together([RemotePeer(made, each.id) for each in made.members]))
    assert min(each.metrics["accuracy"] for each in outcomes[:4]) > 0.8


def test_one_that_is_killed_stops_nobody_and_started_again_it_catches_up() -> None:
    made = network(honest=4, rounds=120, evaluate_every=0)

    async def main() -> None:
        said: list[str] = []
        peers = [RemotePeer(made, id) for id in range(4)]
        async with asyncio.timeout(60):
            tasks = [asyncio.create_task(peer.run()) for peer in peers]
            while len(peers[0].history) < 10:
                await asyncio.sleep(0.005)
            tasks[3].cancel()
            await asyncio.gather(tasks[3], return_exceptions=True)
            while len(peers[0].history) < 40:
                await asyncio.sleep(0.005)
            assert 3 in peers[0].history[-1].missing
            assert "ago" in peers[0].history[-1].absent[3]
            again = RemotePeer(made, 3, say=said.append)
            outcome, *others = await asyncio.gather(again.run(), *tasks[:3])
        assert any("rounds behind 2 neighbours" in line for line in said)
        assert again.history[0].round >= 38
        assert again.history[-1].round == 119
        assert outcome.metrics["accuracy"] > 0.8
        assert outcome.metrics["loss"] == pytest.approx(others[0].metrics["loss"], rel=0.1)

    asyncio.run(main())


def test_a_silent_neighbour_is_waited_for_until_the_deadline_alone() -> None:
    """The aggregation waits for its quorum, not for one neighbour."""
    made = network(honest=4, deadline=0.3, rounds=4, evaluate_every=0)

    async def main() -> None:
        peers = [RemotePeer(made, id) for id in range(3)]
        hubs = [Hub(purpose=f"federation:{made.contract.run}", limits=Limits()) for _ in peers]

        async def silent(peer: RemotePeer, hub: Hub) -> None:
            link = await hub.dial(peer.network.hub.url, "3", attempts=20)
            await link.send(made.contract.registration(3))
            while True:
                await link.recv()

        strangers = [asyncio.create_task(silent(*each)) for each in zip(peers, hubs, strict=True)]
        began = time.perf_counter()
        outcomes = await together(peers)
        assert time.perf_counter() - began < 10
        assert len(outcomes) == 3
        assert all(3 in report.missing for peer in peers for report in peer.history)
        for each in strangers:
            each.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)

    asyncio.run(main())


def test_who_is_no_neighbour_is_not_heard() -> None:
    made = network(honest=4, topology="ring", quorum=2, rounds=3)

    async def main() -> RemotePeer:
        peers = [RemotePeer(made, id) for id in range(4)]
        opposite = Hub(purpose=f"federation:{made.contract.run}", limits=Limits())

        async def intrude() -> None:
            link = await opposite.dial(peers[0].network.hub.url, "2", attempts=20)
            await link.send(made.contract.registration(2))
            await link.recv()
            await link.send(made.contract.message("half", torch.zeros(made.contract.numbers), 0, 0))
            await asyncio.sleep(0.2)
            await link.close()

        intruder = asyncio.create_task(intrude())
        await together(peers)
        await intruder
        return peers[0]

    peer = asyncio.run(main())
    assert peer.network.mailbox(0).refused == {2: {"not a neighbour": 1}}
    assert all(2 not in report.weights for report in peer.history)


def test_too_few_neighbours_are_an_error_that_names_them() -> None:
    made = network(honest=3, patience=0.4)
    with pytest.raises(QuorumLost, match=r"0 of 1 needed neighbours came in 0.4 s; missing: 1 \(never came"):
        asyncio.run(RemotePeer(made, 0).run())


def test_a_peer_needs_an_address() -> None:
    plain = {"nodes": [{"id": 0, "host": "127.0.0.1", "port": 7001}, {"id": 1}, {"id": 2}]}
    made = remote.setup(msgspec.convert(plain, NodesFile), "nodes", Path("nowhere"))
    with pytest.raises(FederationError, match="nodes: id 1 needs host and port"):
        RemotePeer(made, 0)


@pytest.mark.slow
def test_a_killed_process_stops_no_other(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(4)]
    plain = {
        "training": {
            "rounds": 300,
            "dataset": "synthetic",
            "model": "softmax",
            "patience": 60.0,
            "evaluate_every": 300,
        },
        "aggregation": {"method": "median", "f": 1},
        "nodes": [{"id": id, "host": "127.0.0.1", "port": port} for id, port in enumerate(ports)],
        "metrics": str(tmp_path / "rounds"),
    }
    config = write(plain, tmp_path / "nodes.json")
    with ExitStack() as stack:
        running = [
            stack.enter_context(process("--config", config, "--role", "peer", "--node-id", id)) for id in range(4)
        ]
        until(lambda: len(rounds_in(tmp_path / "rounds.0")) > 3)
        os.kill(running[3].pid, signal.SIGKILL)
        told = [each.communicate(timeout=90)[0] for each in running[:3]]
        assert [each.returncode for each in running[:3]] == [0, 0, 0], told
    assert all("done after 300 rounds" in each.splitlines()[-1] for each in told)
    last = rounds_in(tmp_path / "rounds.0")[-1]
    assert last["round"] == 299
    assert last["missing"] == [3]
