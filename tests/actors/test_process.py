"""Workers in processes: tensors are shared, and a kill leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from byzflow.actors import ActorPool, ActorPoolConfig, SubTask, spawn
from byzflow.actors.conformance import doze, echo
from byzflow.actors.process import ProcessBackend
from byzflow.errors import ActorError, WorkerDied
from tests.campaigns.faults import abandoned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory file descriptors are Linux's")


def mapped(tensor: torch.Tensor) -> str:
    """What the memory of a tensor is a mapping of."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, _, high = line.split()[0].partition("-")
        if int(low, 16) <= tensor.data_ptr() < int(high, 16):
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def started(**options: Any) -> ProcessBackend:
    worker = ProcessBackend(**options)
    await worker.start("w")
    return worker


def test_tensors_lie_in_shared_memory_at_both_ends_and_slots_are_used_again() -> None:
    async def main() -> None:
        worker = await started()
        x = torch.randn(300_000)
        assert "memfd:byzflow" in await worker.call(mapped, (x,))
        for _ in range(20):
            got = await worker.call(echo, (x,))
            assert torch.equal(got, x)
            assert "memfd:byzflow" in mapped(got)
            del got
            gc.collect()
            await asyncio.sleep(0.01)
        assert worker._rpc is not None
        assert len(worker._rpc.link._arena.slots) <= 2  # type: ignore[attr-defined]
        kept = [await worker.call(echo, (x + k,)) for k in range(5)]  # as long as they are held they stay as they are
        assert all(torch.equal(each, x + k) for k, each in enumerate(kept))
        await worker.close()
        assert all(torch.equal(each, x + k) for k, each in enumerate(kept))

    asyncio.run(main())


def test_lambdas_closures_and_classes_of_here_may_cross() -> None:
    factor = 3

    class Adder:
        def add(self, x: int) -> int:
            return x + factor

    async def main() -> None:
        worker = await started()
        assert await worker.call(lambda x: x * factor, (2,)) == 6
        async with await spawn(Adder, backend=worker) as adder:
            assert await adder.add(1) == 4
        with pytest.raises(TypeError):
            await worker.call(echo, (open,), {"lock": asyncio.Lock().__class__, "f": (x for x in ())})
        assert await worker.call(echo, (1,)) == 1
        assert (await worker.call(lambda: torch.get_num_threads())) == 1
        await worker.close()

    asyncio.run(main())


class OwnError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)


def test_errors_keep_their_own_type() -> None:
    def fails() -> None:
        raise OwnError(1, 2)

    async def main() -> None:
        worker = await started()
        with pytest.raises(Exception, match=r"\(1, 2\)") as caught:
            await worker.call(fails)
        assert type(caught.value).__name__ == "OwnError"
        await worker.close()

    asyncio.run(main())


def test_killing_workers_among_a_hundred_calls_costs_none() -> None:
    async def main() -> None:
        async with ActorPool([ActorPoolConfig("process:", 2)], max_restarts=10) as pool:
            tasks = [SubTask(pow_after, (k,), max_retries=5) for k in range(100)]
            running = asyncio.create_task(pool.run_many(tasks))
            for victim in ("process-0", "process-1"):
                await asyncio.sleep(0.3)
                pid = pool.workers[victim].backend.pid  # type: ignore[union-attr]
                os.kill(pid, signal.SIGKILL)
            assert await running == [k * k for k in range(100)]
            assert sum(worker.restarts for worker in pool.workers.values()) == 2

    before, names = open_files(), abandoned()
    asyncio.run(asyncio.wait_for(main(), 100))
    gc.collect()
    assert open_files() <= before
    assert abandoned() <= names


def pow_after(k: int) -> int:
    time.sleep(0.02)
    return k * k


def test_a_killed_worker_says_so() -> None:
    async def main() -> None:
        worker = await started()
        running = asyncio.create_task(worker.call(doze, (60.0,)))
        await asyncio.sleep(0.1)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=rf"worker 'w' \(pid {worker.pid}\) is gone"):
            await running
        await worker.close()

    asyncio.run(main())


def test_a_worker_that_never_answers_is_ended() -> None:
    async def main() -> None:
        worker = await started()
        running = asyncio.create_task(worker.call(doze, (60.0,)))
        await asyncio.sleep(0.2)
        start = time.perf_counter()
        await worker.close()
        with pytest.raises(WorkerDied):
            await running
        assert time.perf_counter() - start < 10

    asyncio.run(main())


def test_workers_end_with_their_owner() -> None:
    code = """
import asyncio
from byzflow.actors.process import ProcessBackend
async def main():
    worker = ProcessBackend()
    await worker.start("w")
    await worker.call(abs, (1,))
    print(worker.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
            return  # ended; its adopter has not looked yet
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ActorError, match="threads >= 1, got 0"):
        ProcessBackend(threads=0)
    with pytest.raises(ActorError, match="option threads"):
        ProcessBackend.from_url("process:7")
