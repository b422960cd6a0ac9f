"""Computation graphs: what is refused, what runs when, and messages."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import byzflow
from byzflow.errors import GraphCycle, GraphError, MailboxFull, MessageTimeout
from byzflow.graph import (
    CallableOp,
    ComputationGraph,
    ExecutionSession,
    GraphBuilder,
    GraphInput,
    GraphNode,
    Mailbox,
    Message,
    MessageAwareNodeScheduler,
    MessageTriggerOp,
    NodeScheduler,
    OpContext,
    Operator,
    OperatorExecutor,
    RemoteCallableOp,
    SubTask,
    make_single_operator_graph,
    run_operator,
)
from byzflow.graph.digest import digest


def add(a: int, b: int = 1) -> int:
    return a + b


def run(graph: ComputationGraph, inputs: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return asyncio.run(NodeScheduler(graph, **options).run(inputs))


class Here:
    """A pool of workers that are not there: calls run in place, and are counted."""

    size = 2

    def __init__(self) -> None:
        self.running = self.most = self.calls = 0

    async def run_subtask(self, subtask: SubTask) -> Any:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        return subtask.fn(*subtask.args, **subtask.kwargs)


def test_a_graph_runs_its_nodes_in_order_and_returns_what_is_asked() -> None:
    x = GraphInput("x")
    nodes = [
        GraphNode("c", add, {"a": "b", "b": "b"}),
        GraphNode("b", add, {"a": x}),
        GraphNode("d", add, {"a": "c"}),
    ]
    graph = ComputationGraph(nodes)
    assert list(graph.nodes) == ["b", "c", "d"]
    assert graph.required_inputs == {"x"}
    assert run(graph, {"x": 1}) == {"d": 5}
    assert run(ComputationGraph(nodes, outputs=["b", "c"]), {"x": 1}) == {"b": 2, "c": 4}


def test_what_no_output_needs_is_not_run() -> None:
    def never(a: int) -> int:
        raise AssertionError

    graph = ComputationGraph(
        [GraphNode("a", add, {"a": GraphInput("x")}), GraphNode("b", never, {"a": GraphInput("y")})], outputs=["a"]
    )
    assert graph.required_inputs == {"x"}
    assert run(graph, {"x": 1}) == {"a": 2}


def test_graphs_that_cannot_run_are_refused_by_name() -> None:
    x = GraphInput("x")
    with pytest.raises(GraphError, match="at least one node"):
        ComputationGraph([])
    with pytest.raises(GraphCycle, match="a -> a"):
        ComputationGraph([GraphNode("a", add, {"a": "a"})])
    with pytest.raises(GraphError, match="the output 'z' is no node"):
        ComputationGraph([GraphNode("a", add, {"a": x})], outputs=["z"])
    with pytest.raises(GraphError, match="no operator and no function"):
        GraphNode("a", 3)
    with pytest.raises(GraphError, match="missing graph inputs: x; given: y"):
        run(ComputationGraph([GraphNode("a", add, {"a": x})]), {"y": 1})
    with pytest.raises(TypeError):
        GraphNode("a", add, {"a": x}).inputs["a"] = x  # type: ignore[index]


def test_a_cancelled_run_waits_for_its_threads() -> None:
    ended = threading.Event()

    def slow() -> None:
        time.sleep(0.2)
        ended.set()

    async def main() -> None:
        task = asyncio.create_task(NodeScheduler(ComputationGraph([GraphNode("slow", slow)])).run())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(main())


class Total(Operator):
    """Sums a list; in pieces over a pool."""

    name = "total"

    def compute(self, inputs: Mapping[str, Any], *, context: OpContext) -> int:
        return sum(inputs["x"])

    def create_subtasks(self, inputs: Mapping[str, Any], *, context: OpContext) -> Any:
        return (SubTask(sum, ([value],)) for value in inputs["x"])

    def reduce_subtasks(self, partials: Any, inputs: Mapping[str, Any], *, context: OpContext) -> int:
        assert list(partials) == list(inputs["x"])  # in order
        return sum(partials)


def test_subtasks_fan_out_and_in() -> None:
    graph = make_single_operator_graph(node_name="sum", operator=Total(), input_keys=["x"])
    pool = Here()
    assert run(graph, {"x": range(100)}, pool=pool) == run(graph, {"x": range(100)}) == {"sum": 4950}
    assert pool.calls == 100
    assert pool.most == 16
    assert run(graph, {"x": []}, pool=pool) == {"sum": 0}


def test_subtasks_in_rounds() -> None:
    class Twice(Operator):
        async def run_barriered_subtasks(self, inputs: Mapping[str, Any], *, context: OpContext, pool: Any) -> int:
            first = await pool.run_subtask(SubTask(add, (inputs["x"],)))
            return await pool.run_subtask(SubTask(add, (first,)))

    assert asyncio.run(run_operator(Twice(), {"x": 1}, pool=Here())) == 3


def test_functions_as_steps() -> None:
    assert asyncio.run(run_operator(CallableOp(add, input_mapping={"a": "x"}), {"x": 1})) == 2
    pool = Here()
    assert asyncio.run(run_operator(RemoteCallableOp(add), {"a": 1, "b": 2}, pool=pool)) == 3
    assert pool.calls == 1
    assert asyncio.run(run_operator(RemoteCallableOp(add), {"a": 1})) == 2
    with pytest.raises(GraphError, match=r"add\(a=\) wants the input 'x'; its inputs: y"):
        asyncio.run(run_operator(CallableOp(add, input_mapping={"a": "x"}), {"y": 1}))


@pytest.mark.parametrize("spec", ["median", "krum(f=1)", "nnm(f=1) | trimmed_mean(f=1)"])
def test_operators_of_byzflow_are_steps(spec: str) -> None:
    rows = list(torch.randn(7, 20, generator=torch.Generator().manual_seed(0)))
    expected = byzflow.aggregate(spec, rows)
    builder = GraphBuilder()
    graph = builder.build(builder.input("gradients").apply(byzflow.parse(spec)))
    (value,) = run(graph, {"gradients": rows}).values()
    assert torch.equal(value, expected)
    executor = OperatorExecutor(spec)
    for _ in range(2):
        assert torch.equal(asyncio.run(executor.run({"gradients": rows})), expected)
    array = asyncio.run(run_operator(spec, {"whatever": np.stack([row.numpy() for row in rows])}))
    np.testing.assert_array_equal(array, expected.numpy())


def test_extras_are_further_inputs() -> None:
    rows, weights = torch.randn(4, 5), torch.tensor([1.0, 0, 0, 0])
    builder = GraphBuilder()
    result = builder.node("mean", rows=builder.input("x"), sample_weights=builder.input("w"))
    (value,) = run(builder.build(result), {"x": rows, "w": weights}).values()
    torch.testing.assert_close(value, rows[0])
    with pytest.raises(GraphError, match="needs rows"):
        run(ComputationGraph([GraphNode("a", "mean")]))


def test_the_builder_names_nodes_and_knows_its_own() -> None:
    builder, other = GraphBuilder(), GraphBuilder()
    x = builder.input("x")
    y = x.apply(add, key="a").apply(add, key="a")
    assert list(builder.build(y).nodes) == ["add", "add_2"]
    assert run(builder.build(y), {"x": 1}) == {"add_2": 3}
    with pytest.raises(GraphError, match="belong to another builder"):
        builder.node(add, a=other.input("x"))
    with pytest.raises(GraphError, match="not an input"):
        builder.build(x)


# -------------------------------------------------------------------------------------------------- messages


def test_a_waiter_that_gives_up_loses_nothing() -> None:
    async def main() -> None:
        mailbox = Mailbox()
        with pytest.raises(MessageTimeout, match=r"'a' came within 0\.01 s"):
            await mailbox.take("a", 0.01)
        waiter = asyncio.create_task(mailbox.take("a"))
        await asyncio.sleep(0)
        mailbox.put(Message("a", None, "node 3"))
        waiter.cancel()  # in the same step in which the message came
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert await mailbox.take("a", 0.01) == Message("a", None, "node 3")
        assert not mailbox._waiting
        assert not mailbox._kept

    asyncio.run(main())


def test_a_mailbox_is_bounded() -> None:
    mailbox = Mailbox(limit=2)
    mailbox.put(Message("a", 1))
    mailbox.put(Message("b", 1))
    with pytest.raises(MailboxFull, match="limit is 2: 'c' of node 9 is refused"):
        mailbox.put(Message("c", 1, "node 9"))


def test_a_mailbox_is_bounded_in_bytes_and_for_each_sender() -> None:
    async def main() -> None:
        mailbox = Mailbox(limit=3, room=10_000, each=True)
        for _ in range(2):
            mailbox.put(Message("a", torch.zeros(1000), "node 1"))
        with pytest.raises(
            MailboxFull, match=r"8128 bytes wait, one of 4064 came, and the limit is 10000: 'a' of node 1"
        ):
            mailbox.put(Message("a", torch.zeros(1000), "node 1"))
        for sender in ("node 1", "node 2", "node 2", "node 2"):
            mailbox.put(Message("b", 1, sender))
        with pytest.raises(MailboxFull, match="3 messages wait and the limit is 3: 'b' of node 2"):
            mailbox.put(Message("b", 1, "node 2"))
        for _ in range(2):
            await mailbox.take("a")
        mailbox.put(Message("a", torch.zeros(1000), "node 1"))

    asyncio.run(main())


def test_nodes_wait_for_messages() -> None:
    graph = ComputationGraph(
        [
            GraphNode("sum", add, {"a": GraphInput.from_message("gradient", "value"), "b": "other"}),
            GraphNode("other", MessageTriggerOp("bias", timeout=5)),
        ],
        outputs=["sum"],
    )

    async def main() -> None:
        scheduler = MessageAwareNodeScheduler(graph)
        scheduler.deliver_message("bias", 10)
        task = asyncio.create_task(scheduler.run())
        await asyncio.sleep(0.01)
        scheduler.deliver_message("gradient", {"value": 1}, sender="node 1")
        assert await task == {"sum": 11}
        scheduler.deliver_message("bias", 10)
        scheduler.deliver_message("gradient", {"wrong": 1})
        with pytest.raises(GraphError, match="'gradient' has no field 'value'"):
            await scheduler.run()

    asyncio.run(main())
    with pytest.raises(GraphError, match="MessageAwareNodeScheduler"):
        run(graph)


# -------------------------------------------------------------------------------------------------- sessions


def test_a_session_runs_in_and_out_of_a_loop_and_keeps_results_by_content() -> None:
    calls = []

    def times(factor: int) -> Any:
        def op(a: Any) -> Any:
            calls.append(factor)
            return a * factor

        return op

    def graph(factor: int) -> ComputationGraph:
        return ComputationGraph([GraphNode("out", times(factor), {"a": GraphInput("x")})])

    two, hundred = graph(2), graph(100)
    with ExecutionSession(cache=8) as session:
        assert session.submit(two, {"x": 1}).result(10) == {"out": 2}
        assert session.submit(two, {"x": 50}).result(10) == {"out": 100}
        assert session.submit(hundred, {"x": 1}).result(10) == {"out": 100}  # same node name, another graph
        assert session.submit(two, {"x": 1}).result(10) == {"out": 2}
        assert len(calls) == 3
        x = torch.ones(3)
        assert session.submit(two, {"x": x}).result(10)["out"].tolist() == [2, 2, 2]
        x += 1  # the same object, another content
        assert session.submit(two, {"x": x}).result(10)["out"].tolist() == [4, 4, 4]

        async def inside() -> dict[str, Any]:
            return await session.submit(two, {"x": 7})

        assert asyncio.run(inside()) == {"out": 14}
    session.close()  # twice does no harm


def test_closing_a_session_ends_what_runs() -> None:
    async def forever() -> None:
        await asyncio.sleep(3600)

    session = ExecutionSession()
    future = session.submit(ComputationGraph([GraphNode("a", forever)]))
    time.sleep(0.05)
    session.close()
    assert future.done()
    assert not any(thread.name == "byzflow-session" for thread in threading.enumerate())


def test_digests_tell_contents_apart() -> None:
    values: list[Any] = [
        1, 1.0, True, "1", b"1", None, [1], (1,), {"a": 1}, {"b": 1}, [1, [2]], [[1], 2], [1, 2],
        torch.tensor([1]), torch.tensor([1.0]), torch.tensor([[1.0]]), torch.tensor(1.0), np.ones(1), torch.empty(0),
        torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16),
    ]  # fmt: skip
    digests = [digest(value) for value in values]
    assert None not in digests
    assert len(set(digests)) == len(values)
    assert digest(object()) is digest([object()]) is digest(np.array([None])) is None
    assert digest(torch.ones(4)[::2]) == digest(torch.ones(2))
