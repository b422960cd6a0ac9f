"""Decentralised nodes: messages once each, edges at both ends, handlers that may fail, nodes that go on alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from byzflow.errors import FederationError, GraphError, MailboxFull, MessageTimeout, NotANeighbour, WireError
from byzflow.federation import contexts
from byzflow.federation.applications import NodeApplication
from byzflow.federation.contexts import InProcessContext, ProcessContext
from byzflow.federation.decentralized import DecentralizedNode
from byzflow.federation.decentralized_cluster import DecentralizedCluster
from byzflow.federation.remote_context import RemoteContext
from byzflow.federation.router import MessageRouter
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.tcp_network import TcpNetwork
from byzflow.gossip.topology import Topology, topology
from byzflow.graph import ComputationGraph, GraphInput, GraphNode, MessageTriggerOp, make_single_operator_graph

WHERE = [InProcessContext, ProcessContext]


async def cluster_of(count: int, graph: Any = "full", context: Any = InProcessContext) -> DecentralizedCluster:
    cluster = DecentralizedCluster(graph)
    for k in range(count):
        await cluster.add_node(k, NodeApplication(name=f"node{k}"), context=context())
    return cluster


async def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait for what other nodes do; a test fails if it never comes."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if await held if asyncio.iscoroutine(held) else held:
                return
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("where", WHERE)
def test_every_message_arrives_once_and_in_order(where: Any) -> None:
    """The original lost up to all 200, and gave others to several waiters."""

    async def main() -> None:
        cluster = await cluster_of(3, "full", where)

        def keep(node: DecentralizedNode) -> Any:
            def handler(sender: Any, payload: Any) -> None:
                node.state.setdefault("got", []).append((sender, payload))

            return handler

        for node in cluster.nodes.values():
            node.register_message_handler("number", keep(node))
        async with cluster:
            await asyncio.gather(
                *(cluster[a].send_message(b, "number", k) for k in range(200) for a, b in ((0, 2), (1, 2)))
            )

            async def complete() -> bool:
                return len((await cluster[2].get_state()).get("got", ())) >= 400

            await until(complete)
            got = (await cluster[2].get_state())["got"]
        for sender in (0, 1):
            assert [k for who, k in got if who == sender] == list(range(200))

    asyncio.run(main())


def test_a_message_is_either_handled_or_waited_for_and_only_once() -> None:
    async def main() -> None:
        cluster = await cluster_of(2)
        handled: list[Any] = []
        cluster[1].register_message_handler("handled", lambda sender, payload: handled.append(payload))
        async with cluster:
            waiting = [asyncio.create_task(cluster[1].wait_for_message("kept", 5)) for _ in range(2)]
            for k in range(3):
                await cluster[0].send_message(1, "kept", k)
                await cluster[0].send_message(1, "handled", k)
            assert sorted(await asyncio.gather(*waiting)) == [0, 1]
            assert await cluster[1].wait_for_message("kept", 5) == 2
            for name in ("kept", "handled"):
                with pytest.raises(MessageTimeout):
                    await cluster[1].wait_for_message(name, 0.05)
            await cluster[0].send_message(1, "kept", None)
            assert await cluster[1].wait_for_message("kept", 5) is None  # which is no timeout
        assert handled == [0, 1, 2]

    asyncio.run(main())


@pytest.mark.parametrize("where", WHERE)
def test_a_handler_that_raises_is_reported_and_the_node_goes_on(where: Any) -> None:
    """One exception ended the original's loop, while the node still said that it ran."""

    async def main() -> None:
        cluster = await cluster_of(2, "full", where)

        async def fragile(sender: Any, payload: Any) -> None:
            if payload == 1:
                raise ValueError("one is\ntoo few")
            me.state["sum"] = me.state.get("sum", 0) + payload

        me = cluster[1]
        me.register_message_handler("count", fragile)
        async with cluster:
            for k in (1, 2, 3):
                await cluster[0].send_message(1, "count", k)

            async def counted() -> bool:
                return (await me.get_state()).get("sum") == 5

            await until(counted)
            assert me.running
            (fault,) = await me.faults()
            assert (fault.message_type, fault.sender, fault.error) == ("count", 0, "ValueError: one is too few")

    asyncio.run(main())


def test_edges_are_checked_at_both_ends() -> None:
    async def main() -> None:
        cluster = await cluster_of(4, "ring")
        async with cluster:
            node = cluster[0]
            assert node.get_neighbors() == node.get_in_neighbors() == [1, 3]
            with pytest.raises(NotANeighbour, match="0 may not send to 2; its neighbours are 1, 3"):
                await node.send_message(2, "hello", 1)
            with pytest.raises(NotANeighbour, match="2"):
                await node.multicast_message([1, 2], "hello", 1)
            with pytest.raises(NotANeighbour, match="may not send to 0"):
                await node.send_message(0, "hello", 1)
            assert cluster.network is not None
            assert cluster.network.traffic.sent == 0
            with pytest.raises(NotANeighbour):
                await node.context.send(2, "hello", 1)  # past the router: the network asks too
            cluster.network.deliver(2, Envelope("hello", 0, 1))  # past the sender's end altogether
            assert cluster.network.mailbox(2).refused == {0: {"not a neighbour": 1}}
            with pytest.raises(MessageTimeout):
                await cluster[2].wait_for_message("hello", 0.05)

    asyncio.run(main())


def test_direct_broadcast_multicast_and_reply() -> None:
    async def main() -> None:
        cluster = await cluster_of(4)
        for k in (1, 2, 3):
            node = cluster[k]

            async def answer(sender: Any, payload: Any, node: DecentralizedNode = node) -> None:
                await node.reply_message(sender, "answer", (node.node_id, payload))

            node.register_message_handler("question", answer)
        async with cluster:
            asker = cluster[0]
            await asker.send_message(1, "question", "a")
            assert await asker.wait_for_message("answer", 5) == (1, "a")
            assert await asker.multicast_message([2, 3, 2], "question", "b") == {}
            assert sorted([await asker.wait_for_message("answer", 5) for _ in range(2)]) == [(2, "b"), (3, "b")]
            assert await asker.broadcast_message("question", "c") == {}
            assert sorted([await asker.wait_for_message("answer", 5) for _ in range(3)]) == [
                (1, "c"),
                (2, "c"),
                (3, "c"),
            ]
            await cluster[3].shutdown()
            errors = await asker.broadcast_message("question", "d")
            assert list(errors) == [3]  # counted and named, where the original swallowed it
            assert sorted([await asker.wait_for_message("answer", 5) for _ in range(2)]) == [(1, "d"), (2, "d")]

    asyncio.run(main())


def sum_pipeline() -> ComputationGraph:
    both = {"a": GraphInput.from_message("left"), "b": GraphInput.from_message("right", field="value")}
    return ComputationGraph([GraphNode("sum", lambda a, b: a + b, both)])


@pytest.mark.parametrize("where", WHERE)
def test_a_graph_runs_when_its_messages_have_come(where: Any) -> None:
    async def main() -> None:
        cluster = await cluster_of(3, "full", where)
        cluster[2].application.register_pipeline("sum", sum_pipeline())
        async with cluster:
            running = asyncio.create_task(cluster[2].execute_pipeline("sum"))
            await cluster[0].send_message(2, "left", torch.ones(2))
            await cluster[1].send_message(2, "right", {"value": torch.ones(2)})
            assert (await running)["sum"].tolist() == [2.0, 2.0]

    asyncio.run(main())


def test_fifty_pipelines_at_once_each_with_its_own_messages() -> None:
    """Runs of the original overwrote each other's graph."""

    async def main() -> None:
        cluster = await cluster_of(2)
        app = cluster[1].application
        app.register_pipeline("sum", sum_pipeline())
        app.register_pipeline(
            "double", make_single_operator_graph(node_name="out", operator=lambda x: 2 * x, input_keys=("x",))
        )
        async with cluster:
            sums = [asyncio.create_task(cluster[1].execute_pipeline("sum")) for _ in range(50)]
            doubles = [cluster[1].execute_pipeline("double", {"x": k}) for k in range(50)]
            for k in range(50):
                await cluster[0].send_message(1, "left", k)
                await cluster[0].send_message(1, "right", {"value": 100 * k})
            assert [each["out"] for each in await asyncio.gather(*doubles)] == [2 * k for k in range(50)]
            assert sum(each["sum"] for each in await asyncio.gather(*sums)) == 101 * sum(range(50))
            with pytest.raises(GraphError, match=r"no pipeline 'summ'; did you mean sum\?"):
                await cluster[1].execute_pipeline("summ")

    asyncio.run(main())


def test_a_pipeline_may_run_whenever_its_messages_come() -> None:
    async def main() -> None:
        cluster = await cluster_of(2)
        app, sums = cluster[1].application, []
        app.register_pipeline("sum", sum_pipeline())
        app.register_pipeline("tick", ComputationGraph([GraphNode("t", MessageTriggerOp("tick"))]))
        app.register_pipeline(
            "plain", make_single_operator_graph(node_name="out", operator=lambda x: x, input_keys=("x",))
        )
        async with cluster:
            cluster[1].run_on_messages("sum", then=lambda outputs: sums.append(outputs["sum"]))
            cluster[1].run_on_messages("tick")
            with pytest.raises(GraphError, match="waits for no message"):
                cluster[1].run_on_messages("plain", {"x": 1})
            with pytest.raises(GraphError, match="'plain' also needs inputs: x"):
                cluster[1].run_on_messages("plain")  # each run would fail before it waits for anything
            for k in range(3):
                await cluster[0].send_message(1, "left", k)
                await cluster[0].send_message(1, "right", {"value": 10 * k})
            await until(lambda: len(sums) == 3)
            await cluster[0].send_message(1, "left", 1)
            await cluster[0].send_message(1, "right", "no mapping")
            await until(lambda: len(cluster[1].errors) == 1)
        assert sums == [0, 11, 22]
        assert "has no field 'value'" in cluster[1].errors[0].error

    asyncio.run(main())


class Average:
    """A program that needs no coordinator: values go round, and each node keeps the mean of what it has heard."""

    def __init__(self, node: DecentralizedNode, rounds: int) -> None:
        self.node, self.rounds = node, rounds

    async def run(self, value: float) -> float:
        for t in range(self.rounds):
            unreached = await self.node.broadcast_message(f"value {t}", value)
            heard = [value]
            for _ in set(self.node.get_in_neighbors()) - set(unreached):
                try:
                    heard.append(await self.node.wait_for_message(f"value {t}", 0.3))
                except MessageTimeout:
                    continue
            value = sum(heard) / len(heard)
        return value


def test_any_node_may_stop_and_the_others_finish() -> None:
    async def main() -> None:
        for gone in range(4):
            cluster = await cluster_of(4)
            async with cluster:
                programs = {k: asyncio.create_task(Average(cluster[k], 6).run(10.0 * k)) for k in range(4) if k != gone}
                await cluster.remove_node(gone)
                values = await asyncio.gather(*programs.values())
            expected = [10.0 * k for k in range(4) if k != gone]
            assert values == pytest.approx([sum(expected) / 3] * 3, abs=10.0)
            assert max(values) - min(values) < 1e-6
            assert list(cluster.nodes) == [k for k in range(4) if k != gone]

    asyncio.run(main())


def test_a_node_in_a_process_runs_its_pipelines_there() -> None:
    async def main() -> None:
        import os

        cluster = DecentralizedCluster("full")
        for name in ("here", "there"):
            app = NodeApplication(name=name)
            graph = make_single_operator_graph(node_name="pid", operator=lambda x: (os.getpid(), x), input_keys=("x",))
            app.register_pipeline("pid", graph)
            context = ProcessContext() if name == "there" else InProcessContext()
            await cluster.add_node(name, app, context=context)
        async with cluster:
            here = (await cluster["here"].execute_pipeline("pid", {"x": 1}))["pid"]
            there = (await cluster["there"].execute_pipeline("pid", {"x": 2}))["pid"]
            assert here == (os.getpid(), 1)
            assert there[0] != os.getpid()
            assert there[1] == 2
            with pytest.raises(FederationError, match="register handlers before it starts"):
                cluster["there"].register_message_handler("late", print)
        assert not cluster["there"].running

    asyncio.run(main())


def test_a_handler_may_end_its_own_node() -> None:
    async def main() -> None:
        cluster = await cluster_of(2)

        async def leave(sender: Any, payload: Any) -> None:
            await cluster[1].shutdown()

        cluster[1].register_message_handler("leave", leave)
        async with cluster:
            await cluster[0].send_message(1, "leave", None)
            await until(lambda: not cluster[1].running)
            assert list(await cluster[0].broadcast_message("hello", 1)) == [1]

    asyncio.run(main())


def test_two_clusters_know_nothing_of_each_other() -> None:
    async def main() -> None:
        first, second = await cluster_of(2), await cluster_of(2)
        async with first, second:
            await first[0].send_message(1, "x", "first")
            await second[0].send_message(1, "x", "second")
            assert await second[1].wait_for_message("x", 5) == "second"
            assert await first[1].wait_for_message("x", 5) == "first"

    asyncio.run(main())


def test_what_cannot_work_is_said() -> None:
    async def main() -> None:
        cluster = await cluster_of(2)
        with pytest.raises(FederationError, match="there is a node 0 already"):
            await cluster.add_node(0)
        with pytest.raises(FederationError, match="no node 7; there are 0, 1"):
            cluster[7]
        with pytest.raises(FederationError, match="node 0 is not running"):
            await cluster[0].send_message(1, "x", 1)
        async with cluster:
            with pytest.raises(FederationError, match="before the cluster starts"):
                await cluster.add_node(2)
        await cluster.shutdown_all()
        with pytest.raises(FederationError, match="add it to a DecentralizedCluster"):
            await DecentralizedNode(node_id="alone").start()
        with pytest.raises(FederationError, match="needs an id"):
            DecentralizedNode(node_id="")
        with pytest.raises(FederationError, match="at least 2 nodes, got 1"):
            await (await cluster_of(1)).start_all()

    asyncio.run(main())


def test_the_router_alone() -> None:
    graph = topology("ring", 4)
    assert isinstance(graph, Topology)
    router = MessageRouter(node_id=0, topology=graph)
    assert router.get_out_neighbors() == [1, 3]
    assert [router.can_send_to(k) for k in range(4)] == [False, True, False, True]
    free = MessageRouter(node_id="a")
    assert free.can_send_to("anybody")
    assert not free.can_send_to("a")
    with pytest.raises(ValueError, match="no node 'z'"):
        MessageRouter(node_id="z", topology=graph)


def free_url() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def test_the_same_node_over_tcp() -> None:
    """The same program on one host and on several: only the context is another."""

    async def main() -> None:
        graph = topology("full", ["a", "b", "c"])
        assert isinstance(graph, Topology)
        urls = {name: free_url() for name in "abc"}
        nodes = {}
        for k, name in enumerate("abc"):
            dial: dict[Any, str] = {other: urls[other] for other in "abc"[:k]}
            context = RemoteContext(dial, listen=urls[name], accepts=["number", *(f"value {t}" for t in range(6))])
            app = NodeApplication(name=name)
            nodes[name] = DecentralizedNode(node_id=name, application=app, context=context, topology=graph)
        got: list[Any] = []
        nodes["c"].register_message_handler("number", lambda sender, value: got.append((sender, value)))
        await asyncio.gather(*(node.start() for node in nodes.values()))
        values = await asyncio.gather(*(Average(node, 6).run(10.0 * k) for k, node in enumerate(nodes.values())))
        assert values == pytest.approx([10.0] * 3)
        await asyncio.gather(*(nodes["a"].send_message("c", "number", k) for k in range(200)))
        await nodes["b"].send_message("c", "number", torch.ones(3))
        await until(lambda: len(got) == 201)
        assert [value for sender, value in got if sender == "a"] == list(range(200))
        await nodes["a"].send_message("b", "unheard of", 1)
        mailbox = nodes["b"].context.network.mailbox("b")  # type: ignore[union-attr]
        await until(lambda: "a" in mailbox.refused)
        assert mailbox.refused["a"] == {"of a type that is not accepted here": 1}
        await nodes["c"].shutdown()
        await until(lambda: nodes["a"].context.missing == ("c",))  # type: ignore[attr-defined]
        assert list(await nodes["a"].broadcast_message("number", 1)) == ["c"]
        await asyncio.gather(*(node.shutdown() for node in nodes.values()))

    asyncio.run(main())


def test_what_is_sent_over_tcp_is_what_it_was_when_it_was_sent() -> None:
    """And what cannot cross is its author's error, and costs no link."""

    async def main() -> None:
        graph, url = topology("full", ["a", "b"]), free_url()
        assert isinstance(graph, Topology)
        contexts = [
            RemoteContext({"b": url}, accepts=["weights"], numbers=100),
            RemoteContext(listen=url, accepts=["weights"], numbers=100),
        ]
        a, b = (
            DecentralizedNode(node_id=name, context=context, topology=graph)
            for name, context in zip("ab", contexts, strict=True)
        )
        got: list[Any] = []
        b.register_message_handler("weights", lambda sender, value: got.append(value))
        await asyncio.gather(a.start(), b.start())
        weights = {name: torch.zeros(2, 3) for name in ("first", "second", "third")}
        await a.send_message("b", "weights", weights)
        for each in weights.values():
            each += 1
        for wrong in (torch.zeros(1000), {1, 2}, torch.zeros((1,) * 9)):
            with pytest.raises(WireError):
                await a.send_message("b", "weights", wrong)
        await a.send_message("b", "weights", "last")
        await until(lambda: len(got) == 2)
        assert all(torch.equal(each, torch.zeros(2, 3)) for each in got[0].values())
        assert got[1] == "last"
        assert not contexts[1].network.mailbox("b").refused  # type: ignore[union-attr]
        await asyncio.gather(a.shutdown(), b.shutdown())

    asyncio.run(main())


def test_neighbours_over_tcp_are_bounded_by_the_bytes_of_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step: to be sent, to be heard, and in the node; few large messages weigh as much as many small ones."""
    monkeypatch.setattr(contexts, "PATIENCE", 0.3)

    async def main() -> None:
        graph, url = topology("full", ["a", "b"]), free_url()
        assert isinstance(graph, Topology)
        made = [
            RemoteContext({"b": url}, accepts=["weights"], numbers=100_000),
            RemoteContext(listen=url, accepts=["weights"], numbers=100_000),
        ]
        a, b = (
            DecentralizedNode(node_id=name, context=context, topology=graph)
            for name, context in zip("ab", made, strict=True)
        )
        await asyncio.gather(a.start(), b.start())
        (network, heard), most = (context.network for context in made), made[1].room
        assert isinstance(network, TcpNetwork)
        assert isinstance(heard, TcpNetwork)
        assert most == heard.most == 2 * (800_000 + 1024)

        large = torch.zeros(100_000)  # 400 kB
        for _ in range(4):  # nobody waits for them: the node keeps what its room allows, and reports the rest
            await a.send_message("b", "weights", large)
        await until(lambda: b._mailbox._bytes["a"] > most - 400_100)
        for _ in range(2):
            await a.send_message("b", "weights", large)
        await until(lambda: len(b.errors) == 2)
        assert all(fault.sender == "a" and "the limit is 1602048" in fault.error for fault in b.errors)
        assert b._mailbox._count["a"] == 4

        network.post(["b"], "weights", large, 0)  # of a round: nobody here would ever take it
        await until(lambda: heard.mailbox("b").refused)
        assert heard.mailbox("b").refused["a"] == {"of a round, and there are none here": 1}

        line = network.lines["b"]  # now b reads no more
        heard.lines["a"].link._transport.pause_reading()  # type: ignore[union-attr]

        async def many() -> None:
            for _ in range(40):
                await a.send_message("b", "weights", large)

        with pytest.raises(MailboxFull, match="b took nothing"):
            await many()
        assert line.held < most + 401_000
        assert line.waiting.qsize() < 8
        await asyncio.gather(a.shutdown(), b.shutdown())

    asyncio.run(main())


def test_a_value_that_is_too_much_for_its_check_is_refused_and_costs_no_link() -> None:
    def small(contract: Any, value: Any) -> str | None:
        return "too large" if value.norm() > 1 else None  # of a tensor, as its author believes

    async def main() -> None:
        graph, url = topology("full", ["a", "b"]), free_url()
        assert isinstance(graph, Topology)
        made = [RemoteContext({"b": url}, accepts={"weights": small}), RemoteContext(listen=url, accepts=["weights"])]
        a, b = (
            DecentralizedNode(node_id=name, context=context, topology=graph)
            for name, context in zip("ab", made, strict=True)
        )
        await asyncio.gather(a.start(), b.start())
        await b.send_message("a", "weights", "words")
        await b.send_message("a", "weights", torch.ones(9))
        await b.send_message("a", "weights", torch.zeros(9))
        assert torch.equal(await a.wait_for_message("weights", 5), torch.zeros(9))
        network = made[0].network
        assert network is not None
        assert network.mailbox("a").refused["b"] == {
            "weights: its check raised AttributeError": 1,
            "weights: too large": 1,
        }
        await asyncio.gather(a.shutdown(), b.shutdown())

    asyncio.run(main())


def test_large_messages_that_handlers_work_on_are_bounded_by_their_bytes() -> None:
    async def main() -> None:
        graph, url = topology("full", ["a", "b"]), free_url()
        assert isinstance(graph, Topology)
        made = [
            RemoteContext({"b": url}, accepts=["weights"], numbers=10_000),  # 160 kB at work
            RemoteContext(listen=url, accepts=["weights"], numbers=10_000),
        ]
        a, b = (
            DecentralizedNode(node_id=name, context=context, topology=graph)
            for name, context in zip("ab", made, strict=True)
        )
        gate, seen = asyncio.Event(), []

        async def handler(sender: Any, value: Any) -> None:
            seen.append(sender)
            await gate.wait()

        b.register_message_handler("weights", handler)
        await asyncio.gather(a.start(), b.start())
        for _ in range(10):
            await a.send_message("b", "weights", torch.zeros(10_000))  # 40 kB
        await until(lambda: len(seen) >= 4)
        await asyncio.sleep(0.2)
        assert len(seen) == 5
        gate.set()
        await until(lambda: len(seen) == 10)
        await asyncio.gather(a.shutdown(), b.shutdown())

    asyncio.run(main())
