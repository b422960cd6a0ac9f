"""The pool: lazy, routed, and whole again when a worker dies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

import byzflow
from byzflow.actors import ActorPool, ActorPoolConfig, SubTask, here, resolve, spawn
from byzflow.actors.conformance import CHECKS, Account, _checked, doze, echo
from byzflow.actors.thread import ThreadBackend
from byzflow.errors import ActorError, MessageTimeout, WorkerDied
from byzflow.graph import NodeScheduler, make_single_operator_graph


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("url", ["thread:", "process:"])
def test_contract(url: str, check: Any) -> None:
    asyncio.run(_checked(check, url, {}))


def who() -> str:
    return here().name


def threads(count: int, **options: Any) -> ActorPool:
    return ActorPool([ActorPoolConfig("thread:", count)], **options)


def test_the_overviews_example_runs() -> None:
    """As its authors print it for their own package, with other imports."""
    from byzflow.actors import ActorPool, ActorPoolConfig
    from byzflow.graph import NodeScheduler, make_single_operator_graph
    from byzflow_aggregators.median import Median as CoordinateWiseMedian

    gradients = [torch.randn(1000, generator=torch.Generator().manual_seed(k)) for k in range(10)]

    async def main() -> torch.Tensor:
        aggregator = CoordinateWiseMedian()
        graph = make_single_operator_graph(node_name="agg", operator=aggregator, input_keys=("gradients",))
        pool = ActorPool([ActorPoolConfig(backend="thread", count=4)])
        await pool.start()
        scheduler = NodeScheduler(graph, pool=pool)
        results = await scheduler.run({"gradients": gradients})
        aggregated: torch.Tensor = results["agg"]
        await pool.shutdown()
        return aggregated

    assert torch.equal(asyncio.run(main()), byzflow.aggregate("median", gradients))


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(ActorError, match="have one name"):
        ActorPool([ActorPoolConfig("thread:", name="a"), ActorPoolConfig("thread:", name="a")])
    with pytest.raises(ActorError, match="count >= 1"):
        ActorPoolConfig("thread:", 0)
    with pytest.raises(ActorError, match="at least one"):
        ActorPool([])
    with pytest.raises(ActorError, match="no backend for 'thred:'; did you mean thread"):
        resolve("thred:")


def test_calls_go_where_they_are_fit() -> None:
    async def main() -> None:
        configs = [
            ActorPoolConfig("thread:", 2, name="plain"),
            ActorPoolConfig("thread:", 1, capabilities=["gpu"], name="fast"),
        ]
        async with ActorPool(configs) as pool:
            assert await pool.run_subtask(SubTask(who, affinity="gpu")) == "fast-0"
            assert await pool.run_subtask(SubTask(who, affinity="plain-1", require=True)) == "plain-1"
            names = await pool.run_many([SubTask(who, affinity="gpu", require=True) for _ in range(6)])
            assert set(names) == {"fast-0"}
            assert await pool.run_subtask(SubTask(who, affinity="tpu")) in pool.workers  # preferred only
            with pytest.raises(
                ActorError, match="no worker for 'tpu'; the pool has: cpu, fast-0, gpu, plain-0, plain-1"
            ):
                await pool.run_subtask(SubTask(who, affinity="tpu", require=True))
            # one that waits for a busy worker does not hold up those behind it
            blocked = asyncio.create_task(pool.run_subtask(SubTask(doze, (0.3,), affinity="gpu", require=True)))
            await asyncio.sleep(0.05)
            behind = asyncio.create_task(pool.run_subtask(SubTask(who, affinity="gpu", require=True)))
            await asyncio.sleep(0)
            assert (await pool.run_subtask(SubTask(who))).startswith("plain")
            assert not behind.done()
            await asyncio.gather(blocked, behind)

    asyncio.run(main())


class Mortal(ThreadBackend):
    """Dies at its n-th call."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives

    async def call(self, fn: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.lives -= 1
        if self.lives < 0:
            await self.close()
            raise WorkerDied("it died during the call")
        return await super().call(fn, args, kwargs)


def test_a_dead_worker_is_replaced_and_its_call_tried_again_if_it_may() -> None:
    async def main() -> None:
        made = []

        def make() -> Mortal:
            made.append(Mortal(3))
            return made[-1]

        async with ActorPool([ActorPoolConfig(make, 2)], max_restarts=100) as pool:
            tasks = [SubTask(echo, (k,), max_retries=20) for k in range(100)]
            assert await pool.run_many(tasks) == list(range(100))
            assert len(made) > 30
            with pytest.raises(
                WorkerDied, match=r"died with its worker 'worker-\d' .*; tried 1 times, allowed retries: 0"
            ):
                await pool.run_many([SubTask(echo, (0,)) for _ in range(10)])
            assert await pool.run_subtask(SubTask(echo, (0,), max_retries=20)) == 0

    asyncio.run(main())


def test_calls_that_are_cancelled_at_once_end_at_once() -> None:
    async def main() -> None:
        async with threads(1) as pool:
            for _ in range(200):
                task = asyncio.create_task(pool.run_subtask(SubTask(echo, (1,))))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            assert await pool.run_subtask(SubTask(echo, (2,))) == 2

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_worker_that_does_not_answer_in_time_is_replaced() -> None:
    async def main() -> None:
        async with threads(2) as pool:
            with pytest.raises(WorkerDied, match=r"no answer within 0\.05 s"):
                await pool.run_subtask(SubTask(doze, (0.5,), timeout=0.05))
            assert sum(worker.restarts for worker in pool.workers.values()) == 1
            assert await pool.run_many([SubTask(echo, (k,), timeout=10.0) for k in range(10)]) == list(range(10))

    asyncio.run(main())


def test_workers_that_die_too_often_stay_away_and_the_pool_says_so() -> None:
    async def main() -> None:
        async with ActorPool([ActorPoolConfig(lambda: Mortal(0), 2)], max_restarts=2) as pool:
            outcomes = await asyncio.gather(
                *(pool.run_subtask(SubTask(echo, (k,), max_retries=100)) for k in range(10)), return_exceptions=True
            )
            assert all(isinstance(outcome, WorkerDied) for outcome in outcomes), outcomes
            with pytest.raises(WorkerDied, match="no worker is left"):
                await pool.run_subtask(SubTask(echo, (0,)))

    asyncio.run(asyncio.wait_for(main(), 20))


def test_shutting_down_ends_what_waits() -> None:
    async def main() -> None:
        pool = threads(1)
        running = [asyncio.create_task(pool.run_subtask(SubTask(doze, (0.1,)))) for _ in range(5)]
        await asyncio.sleep(0.03)
        await pool.shutdown()
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(outcome, WorkerDied) for outcome in outcomes), outcomes

    asyncio.run(asyncio.wait_for(main(), 20))


def test_channels_carry_messages_between_workers() -> None:
    async def ask(peer: str) -> Any:
        await here().send(peer, "numbers", 20)
        return (await here().receive("answers", 5)).payload

    async def answer() -> None:
        message = await here().receive("numbers", 5)
        await here().send(message.sender or "", "answers", message.payload + 1)

    async def main() -> None:
        async with threads(3) as pool:
            both = [
                SubTask(ask, ("thread-1",), affinity="thread-0", require=True),
                SubTask(answer, affinity="thread-1", require=True),
            ]
            assert await pool.run_many(both) == [21, None]
            channel = await pool.open_channel("news")
            await channel.send("thread-0", "thread-1", None)
            message = await channel.receive("thread-1", timeout=5)
            assert (message.payload, message.sender) == (None, "thread-0")
            with pytest.raises(MessageTimeout):
                await channel.recv("thread-1", timeout=0.01)
            assert await channel.broadcast("thread-0", "hello") == {}
            assert [await channel.recv(name, timeout=5) for name in ("thread-1", "thread-2")] == ["hello"] * 2
            with pytest.raises(ActorError, match="no worker 'nobody' on channel 'news'; it connects: thread-0"):
                await channel.recv("nobody")

    asyncio.run(main())


def test_objects_on_workers() -> None:
    async def main() -> None:
        async with await spawn(Account, 5.0) as account:
            assert await account.add(2.0) == 7.0
            with pytest.raises(AttributeError, match="Account has no method 'ad'; did you mean add"):
                account.ad  # noqa: B018
        with pytest.raises(WorkerDied):
            await account.add(1.0)
        with pytest.raises(ActorError, match="has no public method"):
            await spawn(object)
        with pytest.raises(TypeError):
            await spawn(Account, 1, 2, 3)
        worker = resolve("thread:")
        await worker.start("shared")
        one, other = await spawn(Account, backend=worker), await spawn(Account, backend=worker)
        await one.add(1.0)
        await one.aclose()
        assert await other.add(2.0) == 2.0
        await worker.close()

    asyncio.run(main())


def test_a_pool_belongs_to_one_loop() -> None:
    pool = threads(1)
    asyncio.run(pool.start())
    with pytest.raises(ActorError, match="another event loop"):
        asyncio.run(pool.start())
    asyncio.run(pool.shutdown())


def test_outside_of_workers_there_is_no_here() -> None:
    with pytest.raises(ActorError, match="does not run in a worker"):
        here()


def test_a_graph_over_a_pool() -> None:
    from tests.graph.test_graphs import Total

    graph = make_single_operator_graph(node_name="sum", operator=Total(), input_keys=["x"])

    async def main() -> Any:
        async with threads(3) as pool:
            return await NodeScheduler(graph, pool=pool).run({"x": range(100)})

    assert asyncio.run(main()) == {"sum": 4950}


def test_subtasks_on_tensors_wait_their_turn() -> None:
    async def main() -> list[float]:
        async with threads(2) as pool:
            return await pool.run_many([SubTask(torch.sum, (torch.full((3,), float(k)),)) for k in range(40)])

    assert [float(each) for each in asyncio.run(main())] == [3.0 * k for k in range(40)]
