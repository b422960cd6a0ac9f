"""Steps, inputs and messages that are not as one would wish."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from byzflow.actors import ActorPool, ActorPoolConfig
from byzflow.errors import GraphError
from byzflow.graph import (
    ComputationGraph,
    ExecutionSession,
    GraphInput,
    GraphNode,
    Mailbox,
    Message,
    NodeScheduler,
    Operator,
    SubTask,
    run_operator,
)
from byzflow.graph.digest import digest


def run(*nodes: GraphNode, **inputs: Any) -> dict[str, Any]:
    return asyncio.run(NodeScheduler(ComputationGraph(nodes)).run(inputs))


class Halt(BaseException):
    """What is no error."""


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), Halt("x")], ids=repr)
@pytest.mark.parametrize("kind", ["plain", "coroutine", "awaitable"])
def test_a_step_that_raises_what_is_no_error_fails_and_is_named(kind: str, end: BaseException) -> None:
    def plain() -> None:
        raise end

    async def coroutine() -> None:
        raise end

    def awaitable() -> Any:
        return coroutine()

    step = {"plain": plain, "coroutine": coroutine, "awaitable": awaitable}[kind]
    with pytest.raises(RuntimeError, match=f"raised {type(end).__name__}") as caught:
        run(GraphNode("mean", step))
    assert caught.value.__notes__ == ["in graph node 'mean'"]


def test_a_step_that_cancels_itself_is_named() -> None:
    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(GraphError, match="node 'mean' cancelled its own task"):
        run(GraphNode("mean", cancels))


def test_a_step_that_wants_to_exit_does_not_end_a_session() -> None:
    async def leaves() -> None:
        raise SystemExit(3)

    with ExecutionSession() as session:
        with pytest.raises(RuntimeError, match="SystemExit"):
            session.submit(ComputationGraph([GraphNode("a", leaves)])).result(10)
        assert session.submit(ComputationGraph([GraphNode("a", lambda: 1)])).result(10) == {"a": 1}


def test_groups_and_nothing_come_through() -> None:
    def many() -> None:
        raise ExceptionGroup("many", [ValueError("one"), KeyError("two")])

    with pytest.raises(ExceptionGroup, match="many") as caught:
        run(GraphNode("a", many))
    assert [type(each) for each in caught.value.exceptions] == [ValueError, KeyError]
    assert run(GraphNode("a", lambda x: None, {"x": GraphInput("x")}), x=None) == {"a": None}


def test_an_error_after_a_run_was_cancelled_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    def late() -> None:
        time.sleep(0.1)
        raise ValueError("late")

    async def main() -> None:
        running = asyncio.create_task(NodeScheduler(ComputationGraph([GraphNode("a", late)])).run())
        await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
        gc.collect()
    assert caplog.text == ""


def test_inputs_that_are_no_sources_are_refused() -> None:
    with pytest.raises(GraphError, match="node 'mean': its input 'f' is of type int, not a node"):
        GraphNode("mean", lambda rows, f: rows, {"rows": GraphInput("rows"), "f": 5})  # type: ignore[dict-item]


def test_outputs_are_nodes_or_their_names() -> None:
    mean = GraphNode("mean", lambda: 1)
    more = GraphNode("more", lambda x: x + 1, {"x": mean})
    either: list[list[str | GraphNode]] = [[mean, more], ["mean", more]]
    for outputs in either:
        assert asyncio.run(NodeScheduler(ComputationGraph([mean, more], outputs=outputs)).run()) == {
            "mean": 1,
            "more": 2,
        }
    wrong: list[Sequence[str]] = ["mean", [], ()]
    for none in wrong:
        with pytest.raises(GraphError, match="outputs are a list of at least one node, got"):
            ComputationGraph([mean], outputs=none)
    assert len({mean, more, mean}) == 2


def test_a_closed_session_says_so() -> None:
    graph = ComputationGraph([GraphNode("a", lambda: 1)])
    with ExecutionSession() as session:
        pass
    with pytest.raises(GraphError, match="this session was closed; make another"):
        session.submit(graph)


class Cut(Operator):
    """Cuts its work in a coroutine, or in a plain function that takes its time."""

    def __init__(self, most: int | None = None) -> None:
        self.max_subtasks_inflight = most
        self.thread = ""

    async def create_subtasks(self, inputs: Any, *, context: Any) -> list[SubTask]:  # type: ignore[override]
        return [SubTask(abs, (each,)) for each in inputs["x"]]

    def reduce_subtasks(self, partials: Sequence[Any], inputs: Any, *, context: Any) -> Any:
        return sum(partials)


class CutSlowly(Cut):
    def create_subtasks(self, inputs: Any, *, context: Any) -> list[SubTask]:  # type: ignore[override]
        self.thread = threading.current_thread().name
        return [SubTask(abs, (each,)) for each in inputs["x"]]


def test_cutting_may_be_a_coroutine_and_does_not_hold_up_the_loop() -> None:
    async def main() -> None:
        async with ActorPool(ActorPoolConfig("thread:", 2)) as pool:
            assert await run_operator(Cut(), {"x": [-1, -2]}, pool=pool) == 3
            slowly = CutSlowly()
            assert await run_operator(slowly, {"x": [-1, -2]}, pool=pool) == 3
            assert slowly.thread != threading.main_thread().name
            for limit in (0, -1):
                with pytest.raises(GraphError, match=f"a limit >= 1 of how many are in flight, got {limit}"):
                    await run_operator(Cut(limit), {"x": [-1]}, pool=pool)
                with pytest.raises(GraphError, match="a limit >= 1"):
                    await pool.run_many([SubTask(abs, (-1,))], limit=limit)

    asyncio.run(main())


def test_a_thousand_nodes_in_a_row_and_side_by_side() -> None:
    def more(x: int) -> int:
        return x + 1

    row = [
        GraphNode("0", more, {"x": GraphInput("x")}),
        *(GraphNode(f"{k}", more, {"x": f"{k - 1}"}) for k in range(1, 1000)),
    ]
    assert run(*row, x=0) == {"999": 1000}
    wide = [GraphNode(f"{k}", more, {"x": GraphInput("x")}) for k in range(1000)]
    assert run(*wide, GraphNode("sum", lambda **x: sum(x.values()), {f"x{k}": f"{k}" for k in range(1000)}), x=1) == {
        "sum": 2000
    }


def test_what_one_gives_back_goes_to_the_other_who_waits() -> None:
    async def main() -> None:
        box = Mailbox()
        one, other = (asyncio.create_task(box.take("m", 5)) for _ in range(2))
        await asyncio.sleep(0)
        box.put(Message("m", 1))
        one.cancel()
        assert (await other).payload == 1
        assert one.cancelled()
        assert len(box) == 0

    asyncio.run(main())


def test_a_kept_result_that_was_modified_is_not_given_again() -> None:
    calls = []

    def same(x: Any) -> Any:
        calls.append(1)
        return x

    graph = ComputationGraph([GraphNode("out", same, {"x": GraphInput("x")})])
    with ExecutionSession(cache=2) as session:
        x = torch.ones(2)
        session.submit(graph, {"x": x}).result(10)
        x += 1  # is also the result
        assert session.submit(graph, {"x": torch.ones(2)}).result(10)["out"].tolist() == [1, 1]
        assert session.submit(graph, {"x": torch.ones(2)}).result(10)["out"].tolist() == [1, 1]
        assert len(calls) == 2
        for odd in (torch.ones(2).to_sparse(), torch.ones(2, requires_grad=True), torch.ones(2, device="meta")):
            assert session.submit(graph, {"x": odd}).result(10)["out"] is odd


def test_what_is_more_than_its_content_has_no_digest() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (
        torch.ones(2, requires_grad=True),
        torch.ones(2).to_sparse(),
        np.ma.masked_array([1], [False]),
        endless,
    ):
        assert digest(value) is None
    z = torch.ones(2, dtype=torch.complex64) * 1j
    assert digest(torch.conj(z)) == digest(torch.conj(z).resolve_conj()) != digest(z)
    pairs = [np.zeros(2, dtype=[(name, "f4"), ("b", "f4")]) for name in "ac"]
    assert digest(pairs[0]) != digest(pairs[1])
