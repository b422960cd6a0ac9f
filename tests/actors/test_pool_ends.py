"""Pools that start, are cancelled and shut down at awkward moments, and configurations that mean something else."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from byzflow.actors import ActorPool, ActorPoolConfig, SubTask
from byzflow.actors.conformance import doze, echo
from byzflow.actors.host import Route
from byzflow.actors.thread import ThreadBackend
from byzflow.errors import ActorError, WorkerDied


class Slow(ThreadBackend):
    """Its second worker takes a while to come and to go; those that are there are counted."""

    there = 0

    async def start(self, name: str, route: Route | None = None) -> None:
        if name.endswith("1"):
            await asyncio.sleep(0.2)
        await super().start(name, route)
        Slow.there += 1

    async def close(self) -> None:
        if self._host is not None:
            Slow.there -= 1
        await super().close()


@pytest.fixture(autouse=True)
def _counted() -> Any:
    Slow.there = 0
    yield
    assert Slow.there == 0


def test_shutting_down_while_the_pool_starts_leaves_no_worker() -> None:
    async def main() -> None:
        pool = ActorPool(ActorPoolConfig(Slow, 2))
        calls = [asyncio.create_task(pool.run_subtask(SubTask(echo, (k,)))) for k in range(3)]
        await asyncio.sleep(0.05)
        await pool.shutdown()
        assert Slow.there == 0
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in outcomes] == [WorkerDied] * 3
        with pytest.raises(ActorError, match="this pool was shut down; make another"):
            await pool.start()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_start_that_is_cancelled_leaves_no_worker_and_may_be_made_again() -> None:
    async def main() -> None:
        pool = ActorPool(ActorPoolConfig(Slow, 2))
        first = asyncio.create_task(pool.run_subtask(SubTask(echo, (1,))))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(pool.run_subtask(SubTask(echo, (2,))))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert await second == 2  # who waited for the start as well begins anew
        assert Slow.there == 2
        await pool.shutdown()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), ActorPool(ActorPoolConfig(Slow, 2)):
                pass
        assert Slow.there == 0

    asyncio.run(asyncio.wait_for(main(), 20))


def test_who_is_given_a_worker_in_the_moment_of_the_shutdown_hears_of_it() -> None:
    async def main() -> None:
        pool = ActorPool(ActorPoolConfig("thread:"))

        async def one_call() -> None:
            await pool.run_subtask(SubTask(doze, (0.05,)))
            await pool.shutdown()

        first = asyncio.create_task(one_call())
        await asyncio.sleep(0.02)
        with pytest.raises(WorkerDied, match=r"no worker is left for echo: .* the pool was shut down"):
            await pool.run_subtask(SubTask(echo, (1,)))
        await first

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_shutdown_that_is_cancelled_still_ends_the_workers() -> None:
    class Lingers(Slow):
        async def close(self) -> None:
            await asyncio.sleep(0.1)
            await super().close()

    async def main() -> None:
        pool = ActorPool(ActorPoolConfig(Lingers, 2))
        await pool.start()
        ending = asyncio.create_task(pool.shutdown())
        await asyncio.sleep(0.01)
        ending.cancel()
        await asyncio.wait([ending])
        await pool.shutdown()  # waits for the same end
        assert Slow.there == 0

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("moment", range(12))
def test_calls_that_are_cancelled_at_any_moment_leave_their_worker_to_others(moment: int) -> None:
    async def main() -> None:
        async with ActorPool(ActorPoolConfig("thread:", 2)) as pool:
            calls = [asyncio.create_task(pool.run_subtask(SubTask(doze, (0.01,)))) for _ in range(4)]
            for _ in range(moment):
                await asyncio.sleep(0 if moment < 8 else 0.002)
            for call in calls[::2]:
                call.cancel()
            await asyncio.wait(calls)
            assert all(call.cancelled() or call.result() == 0.01 for call in calls)
            assert await pool.run_many([SubTask(echo, (k,)) for k in range(8)]) == list(range(8))

    asyncio.run(asyncio.wait_for(main(), 20))


def test_configurations_that_mean_something_else_are_refused() -> None:
    with pytest.raises(ActorError, match=r"capabilities are a list of words, got 'gpu'; write \['gpu'\]"):
        ActorPoolConfig("thread:", capabilities="gpu")
    with pytest.raises(ActorError, match="one ThreadBackend cannot be 2 workers; give a URL, or a function"):
        ActorPoolConfig(ThreadBackend(), 2)


def test_sixty_four_workers_work_at_once() -> None:
    async def main() -> float:
        async with ActorPool(ActorPoolConfig("thread:", 64)) as pool:
            begin = time.monotonic()
            await pool.run_many([SubTask(doze, (0.1,)) for _ in range(128)])
            return time.monotonic() - begin

    assert asyncio.run(main()) < 2.0  # one after the other: 12.8
