"""What went wrong in ByzPy's graphs, by its number in the list of federation failures: none of it may come back."""

from __future__ import annotations

import ast
import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import byzflow
from byzflow.errors import GraphCycle, GraphError, MessageTimeout, UnknownDependency
from byzflow.graph import (
    ComputationGraph,
    ExecutionSession,
    GraphInput,
    GraphNode,
    Mailbox,
    Message,
    MessageAwareNodeScheduler,
    MessageTriggerOp,
    NodeScheduler,
    run_operator,
)
from byzflow.registry import installed
from tests.graph.test_graphs import add

PACKAGE = Path(byzflow.__file__).parent
PATIENCE = 20.0  # seconds after which something that must happen has not


def run(graph: ComputationGraph, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    return asyncio.run(asyncio.wait_for(NodeScheduler(graph).run(inputs), PATIENCE))


def test_b12_two_consumers_of_one_queue_lose_no_message() -> None:
    """Two consumers of one queue delivered 0 to 200 of 200 messages."""

    async def main() -> None:
        mailbox = Mailbox(limit=500)
        got: list[Any] = []

        async def consume(count: int) -> None:
            for _ in range(count):
                got.append((await mailbox.take("gradient", 10)).payload)

        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(consume(100))
            for k in range(200):
                mailbox.put(Message("gradient", k))
                if k % 7 == 0:
                    await asyncio.sleep(0)
        assert sorted(got) == list(range(200))
        assert len(mailbox) == 0

    for _ in range(100):
        asyncio.run(main())


def test_b14_a_message_is_delivered_exactly_once() -> None:
    """A delivered message went to all waiters and was also kept, so that the trigger fired again."""
    graph = ComputationGraph([GraphNode("news", MessageTriggerOp("news", timeout=0.05))])

    async def main() -> None:
        scheduler = MessageAwareNodeScheduler(graph)
        both = [asyncio.create_task(scheduler.wait_for_message("news", timeout=0.2)) for _ in range(2)]
        await asyncio.sleep(0)
        scheduler.deliver_message("news", "one")
        outcomes = await asyncio.gather(*both, return_exceptions=True)
        assert outcomes[0] == "one"  # who has waited longest
        assert isinstance(outcomes[1], MessageTimeout)
        assert len(scheduler.mailbox) == 0
        with pytest.raises(MessageTimeout):  # nothing was kept
            await scheduler.run()
        scheduler.deliver_message("news", "two")
        assert await scheduler.run() == {"news": "two"}
        with pytest.raises(MessageTimeout):
            await scheduler.run()

    asyncio.run(main())


def test_b16_fifty_runs_at_once_do_not_mix() -> None:
    """Concurrent runs of one pipeline corrupted each other."""
    graph = ComputationGraph([GraphNode("b", add, {"a": GraphInput("x")}), GraphNode("c", add, {"a": "b"})])

    async def main() -> list[dict[str, Any]]:
        scheduler = NodeScheduler(graph)
        return await asyncio.gather(*(scheduler.run({"x": k}) for k in range(50)))

    assert asyncio.run(main()) == [{"c": k + 2} for k in range(50)]


def test_b17_results_are_kept_by_graph_and_content() -> None:
    """The cache went by the node's name: another graph, or other inputs, got the first value."""
    calls: list[int] = []

    def plus(term: int) -> ComputationGraph:
        def op(a: Any) -> Any:
            calls.append(term)
            return a + term

        return ComputationGraph([GraphNode("out", op, {"a": GraphInput("x")})])

    one, hundred = plus(1), plus(100)
    with ExecutionSession(cache=8) as session:
        for graph, x, expected in ((one, 1, 2), (one, 50, 51), (hundred, 1, 101), (one, 1, 2), (hundred, 1, 101)):
            assert session.submit(graph, {"x": x}).result(PATIENCE) == {"out": expected}
        assert calls == [1, 1, 100]
        changing = torch.ones(3)
        assert session.submit(one, {"x": changing}).result(PATIENCE)["out"].tolist() == [2, 2, 2]
        changing += 1  # the same object with another content
        assert session.submit(one, {"x": changing}).result(PATIENCE)["out"].tolist() == [3, 3, 3]


def test_b20_a_node_waits_for_its_own_inputs_only() -> None:
    """Nodes ran level by level: a critical path of 0.55 s took 1.0 s."""
    begun = asyncio.Event()

    async def slow() -> None:  # of the first level, and ends only after one of the second has begun
        await asyncio.wait_for(begun.wait(), PATIENCE)

    async def quick() -> None:
        pass

    async def after_quick(a: None) -> None:
        begun.set()

    async def end(a: None, b: None) -> str:
        return "done"

    nodes = [
        GraphNode("slow", slow),
        GraphNode("quick", quick),
        GraphNode("after_quick", after_quick, {"a": "quick"}),
        GraphNode("end", end, {"a": "slow", "b": "after_quick"}),
    ]
    assert run(ComputationGraph(nodes)) == {"end": "done"}


def test_b20_plain_functions_overlap_and_do_not_hold_up_the_loop() -> None:
    """Operators that are plain functions ran one after the other."""
    barrier = threading.Barrier(2, timeout=PATIENCE)
    graph = ComputationGraph([GraphNode("a", barrier.wait), GraphNode("b", barrier.wait)], outputs=["a", "b"])
    assert sorted(run(graph).values()) == [0, 1]  # each waits for the other


def test_b21_three_mistakes_have_three_errors() -> None:
    """An unknown dependency was called a cycle, a node overwrote the input of its name, one node replaced another."""
    x = GraphInput("x")
    with pytest.raises(
        UnknownDependency, match=r"node 'b' needs 'nod_a', which is no node; did you mean node_a"
    ) as unknown:
        ComputationGraph([GraphNode("node_a", add, {"a": x}), GraphNode("b", add, {"a": "nod_a"})])
    assert not isinstance(unknown.value, GraphCycle)
    with pytest.raises(GraphCycle, match=r"need each other: (a -> b -> a|b -> a -> b)"):
        ComputationGraph([GraphNode("a", add, {"a": "b"}), GraphNode("b", add, {"a": "a"})])
    with pytest.raises(GraphError, match="'x' is the name of a node and of a graph input"):
        ComputationGraph([GraphNode("x", add, {"a": x})])
    with pytest.raises(GraphError, match="two nodes are named 'a'"):
        ComputationGraph([GraphNode("a", add, {"a": x}), GraphNode("a", add, {"a": x})])


def test_b22_a_failure_names_its_node_and_leaves_nothing_running() -> None:
    """What had not ended when a node failed was neither cancelled nor awaited."""
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("slow")

    def fails() -> None:
        raise ZeroDivisionError("boom")

    graph = ComputationGraph([GraphNode("slow", slow), GraphNode("bad", fails)], outputs=["slow", "bad"])

    async def main() -> None:
        with pytest.raises(ZeroDivisionError, match="boom") as caught:
            await NodeScheduler(graph).run()
        assert caught.value.__notes__ == ["in graph node 'bad'"]
        assert ended == ["slow"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_step_that_raises_stop_iteration_fails() -> None:
    """A future does not take StopIteration: the run would wait for ever."""

    def exhausted() -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        run(ComputationGraph([GraphNode("a", exhausted)]))


NEEDED = {  # what some rules cannot do without
    "centered_clipping": "tau=1.0", "gas": "rule=median", "huber": "threshold=1.0", "layerwise": "rule=median",
    "monna": "reference_index=0", "rlr": "threshold=1.0",
}  # fmt: skip


@pytest.mark.parametrize("name", [entry.operator.name for entry in installed().of_kind("aggregator")])
def test_b26_numpy_rows_are_taken_by_the_one_implementation(name: str) -> None:
    """A NumPy backend was documented and did not exist; the operators had two implementations that differed."""
    rows = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    operator = byzflow.parse(f"{name}({NEEDED[name]})" if name in NEEDED else name, f=1)
    extras = {"server": rows.mean(0)} if "server" in operator.accepts else {}
    expected = operator(rows, **extras)
    inputs = {"rows": rows.numpy(), **{key: value.numpy() for key, value in extras.items()}}
    value = asyncio.run(run_operator(operator, inputs))
    assert isinstance(value, np.ndarray)
    np.testing.assert_array_equal(value, expected.numpy())


def sleeps(code: str) -> Iterator[str]:
    """Names of the functions that pause, as Class.method; a pause of nothing, which only yields, is none."""

    def walk(node: ast.AST, where: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, f"{where}.{child.name}".strip("."))
                continue
            pause = isinstance(child, ast.Call) and ast.unparse(child.func) in ("asyncio.sleep", "time.sleep", "sleep")
            if pause and ast.unparse(child.args[0]) != "0":  # type: ignore[attr-defined]
                yield where
            yield from walk(child, where)

    return walk(ast.parse(code), "")


PAUSES = {
    "actors/hub.py": {"Hub.dial", "Hub.keep", "Hub._welcomed"},  # growing pauses; a last word is to be read
    "actors/tcp.py": {"TcpBackend._stay"},  # a link that broke as it came is dialled again
    "actors/worker.py": {"Worker.call.end"},  # the timeout itself
    "actors/conformance.py": {  # work that takes a while, and calls that are to be under way
        "doze", "Account.add", "Account.wait", "waiting_does_not_block", "cancelling_leaves_nothing_running",
        "closing_ends_calls_in_flight",
    },
}  # fmt: skip


@pytest.mark.parametrize("folder", ["graph", "actors"])
def test_b27_nothing_waits_by_sleeping(folder: str) -> None:
    """Sleeps stood in the place of synchronisation."""
    for file in sorted((PACKAGE / folder).glob("*.py")):
        found = set(sleeps(file.read_text()))
        assert found <= PAUSES.get(f"{folder}/{file.name}", set()), f"{file.name} sleeps in {found}"


def test_the_search_for_sleeps_finds() -> None:
    code = "class A:\n async def b(self):\n  await asyncio.sleep(0)\n  await asyncio.sleep(x)\ndef c():\n time.sleep(1)"
    assert list(sleeps(code)) == ["A.b", "c"]
