"""Workers with a GPU; on the CPU where there is none."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from byzflow.actors import ActorPool, ActorPoolConfig, SubTask, resolve
from byzflow.actors.conformance import CHECKS, Account, _checked, echo
from byzflow.actors.cuda import _run
from byzflow.actors.thread import ThreadBackend
from byzflow.errors import ActorError

PRESENT = torch.cuda.is_available()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not PRESENT else "error")
        asyncio.run(_checked(check, "cuda:0", {}))


def test_without_a_gpu_it_says_so_and_counts_as_cpu() -> None:
    async def main() -> None:
        pool = ActorPool([ActorPoolConfig("cuda:99")])
        with pytest.warns(UserWarning, match=r"worker 'cuda-0': no GPU 99 among \d+; it runs on the CPU"):
            await pool.start()
        assert await pool.run_subtask(SubTask(echo, (1,), affinity="cpu", require=True)) == 1
        with pytest.raises(ActorError, match="no worker for 'gpu'"):
            await pool.run_subtask(SubTask(echo, (1,), affinity="gpu", require=True))
        await pool.shutdown()

    asyncio.run(main())


class Where:
    def stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)


@pytest.mark.skipif(not PRESENT, reason="no GPU here")
def test_work_stays_on_the_device() -> None:
    async def main() -> None:
        worker = resolve("cuda:0", share=0.5)
        await worker.start("w")
        made = await worker.call(lambda: torch.ones(3, device="cuda") * 2)
        assert made.device == torch.device("cuda", 0)
        assert made.tolist() == [2, 2, 2]
        number, _ = await worker.create(Where, (), {})  # objects live there too
        assert await worker.invoke(number, "stream", (), {}) not in (0, torch.cuda.default_stream().cuda_stream)
        await worker.close()

    asyncio.run(main())


@pytest.mark.parametrize("error", [None, ValueError("no good")])
def test_a_call_begins_after_its_arguments_were_made_and_ends_after_its_work(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """The order of what is asked of the GPU, which also holds where there is none."""
    order: list[Any] = []

    class Stream:
        def wait_stream(self, other: Any) -> None:
            order.append(("waits for", other))

        def synchronize(self) -> None:
            order.append("is done")

    def call() -> None:
        order.append("runs")
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: f"the default of {device}")
    with nullcontext() if error is None else pytest.raises(ValueError, match="no good"):
        _run(torch.device("cuda", 1), Stream(), call)  # type: ignore[arg-type]
    assert order == [("waits for", "the default of cuda:1"), "runs", "is done"]


@pytest.mark.skipif(not PRESENT, reason="no GPU here")
def test_arguments_that_are_still_in_the_making_are_waited_for() -> None:
    async def main() -> None:
        worker = resolve("cuda:0")
        await worker.start("w")
        for _ in range(10):
            x = torch.zeros(1 << 20, device="cuda")
            torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
            x += 1
            assert await worker.call(lambda x=x: x.sum().item()) == 1 << 20
        await worker.close()

    asyncio.run(main())


def test_wrong_options_are_refused() -> None:
    for url, options in (("cuda:x", {}), ("cuda:0", {"count": 2}), ("cuda:0", {"share": 0.0})):
        with pytest.raises(ActorError, match="GPU worker"):
            resolve(url, **options)


def test_what_is_around_a_worker_is_around_its_objects_too() -> None:
    seen = []

    def around(fn: Any) -> Any:
        seen.append(fn.func)
        return fn()

    async def main() -> None:
        worker = ThreadBackend()
        worker.around = around
        await worker.start("w")
        number, _ = await worker.create(Account, (), {})
        await worker.invoke(number, "add", (1.0,), {})
        await worker.call(echo, (1,))
        await worker.close()

    asyncio.run(main())
    assert len(seen) == 3
    assert seen[-1] is echo
