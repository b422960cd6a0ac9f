"""Calls, objects and values that are not as one would wish, on workers of every kind."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from byzflow.actors import ActorPool, ActorPoolConfig, SubTask, spawn
from byzflow.actors.conformance import echo
from byzflow.actors.process import ProcessBackend
from byzflow.actors.thread import ThreadBackend
from byzflow.errors import ActorError, RemoteError, WorkerDied

KINDS = ["thread:", "process:"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and memory file descriptors are Linux's")


def within(seconds: float, main: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), seconds))


# -------------------------------------------------------------------------------------------------- what calls raise


class Halt(BaseException):
    """What is no error."""


ENDS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "Halt": lambda: Halt("x"),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("x", [KeyboardInterrupt()]),
}


def ends_plainly(name: str) -> None:
    raise ENDS[name]()


async def ends(name: str) -> None:
    raise ENDS[name]()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_error_is_told_and_the_worker_lives(kind: str) -> None:
    async def main() -> None:
        async with ActorPool(ActorPoolConfig(kind)) as pool:
            for name in ENDS:
                for fn in (ends_plainly, ends):
                    with pytest.raises(RuntimeError, match=f"raised {name}"):
                        await pool.run_many([SubTask(fn, (name,)), SubTask(echo, (1,))])
                    assert await pool.run_subtask(SubTask(echo, (name,))) == name

    within(60, main)


class Odd(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def fails_with_a_lock() -> None:
    error = ValueError("the point")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def fails_in_many_ways() -> None:
    raise ExceptionGroup("many", [ValueError("one"), Odd(1, 2), ExceptionGroup("inner", [Odd(3, 4)])])


def test_errors_that_do_not_travel_keep_their_message() -> None:
    async def main() -> None:
        async with ActorPool(ActorPoolConfig("process:")) as pool:
            with pytest.raises(ValueError, match="the point"):
                await pool.run_subtask(SubTask(fails_with_a_lock))
            with pytest.raises(ExceptionGroup, match="many") as caught:
                await pool.run_subtask(SubTask(fails_in_many_ways))
            one, odd, inner = caught.value.exceptions
            assert isinstance(one, ValueError)
            assert isinstance(odd, RemoteError)
            assert isinstance(inner, ExceptionGroup)
            assert (str(odd), str(inner.exceptions[0])) == ("Odd: 1 and 2", "Odd: 3 and 4")

    within(60, main)


def fails_late() -> None:
    time.sleep(0.1)
    raise ValueError("late")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_after_a_call_was_cancelled_is_not_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with ActorPool(ActorPoolConfig(kind)) as pool:
            await pool.run_subtask(SubTask(echo, (1,)))
            call = asyncio.create_task(pool.run_subtask(SubTask(fails_late)))
            await asyncio.sleep(0.03)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()

    with caplog.at_level(logging.WARNING):
        within(60, main)
        gc.collect()
    assert caplog.text == ""


class Leaves:
    """Ends the program when it is made again, or put away."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __reduce__(self) -> Any:
        if self.when == "here":
            sys.exit(3)
        return sys.exit, (3,)


def test_values_that_end_the_program_end_only_their_call() -> None:
    async def main() -> None:
        async with ActorPool(ActorPoolConfig("process:")) as pool:
            for when, words in (("here", "cannot travel"), ("there", "does not read")):
                for call in (SubTask(echo, (Leaves(when),)), SubTask(Leaves, (when,))):
                    with pytest.raises(TypeError, match=f"{words}.* SystemExit: 3"):
                        await pool.run_subtask(call)
            assert await pool.run_subtask(SubTask(echo, (1,))) == 1
            assert pool.workers["process-0"].restarts == 0

    within(60, main)


# -------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_that_is_cancelled_at_the_last_moment_loses_no_message(kind: str) -> None:
    async def main() -> None:
        async with ActorPool(ActorPoolConfig(kind)) as pool:
            channel = await pool.open_channel("news")
            (name,) = pool.workers
            got = []
            for k in range(100):
                taking = asyncio.create_task(channel.recv(name))
                await asyncio.sleep(0.001)
                await channel.send(name, name, k)
                taking.cancel()
                await asyncio.wait([taking])
                got.append(await channel.recv(name, timeout=5) if taking.cancelled() else taking.result())
            assert got == list(range(100))

    within(60, main)


# -------------------------------------------------------------------------------------------------- objects


class Model:
    """Gives out its own memory, which it changes in place."""

    def __init__(self) -> None:
        self.x = np.zeros(1_000_000)

    def get(self) -> Any:
        """Not a copy."""
        return self.x

    def fill(self, k: float) -> None:
        """In place."""
        self.x[:] = k


def test_a_result_is_what_it_was_when_the_call_ended() -> None:
    """The next call on the object began before the result was on its way."""

    async def main() -> None:
        async with await spawn(Model, backend="process:") as model:
            for turn in range(10):
                calls = [call for k in range(4) for call in (model.fill(10.0 * turn + k), model.get())]
                for k, got in enumerate((await asyncio.gather(*calls))[1::2]):
                    assert (got.min(), got.max()) == (10 * turn + k, 10 * turn + k)

    within(60, main)


def changes(x: Any) -> Any:
    x += 1
    return x


def test_what_a_process_changes_is_its_own() -> None:
    async def main() -> None:
        for x in (np.zeros(100_000), np.zeros((200, 1000))[::2, ::2], torch.zeros(100_000), torch.zeros(3)):
            async with ActorPool(ActorPoolConfig("process:", 2)) as pool:
                for got in await pool.run_many([SubTask(changes, (x,)), SubTask(changes, (x,))]):
                    assert got.min() == got.max() == 1
            assert x.min() == x.max() == 0

    within(60, main)


class Unready:
    """Has properties that are no methods, and cannot be had yet."""

    @property
    def state(self) -> int:
        """Raises."""
        raise RuntimeError("not ready")

    def go(self) -> int:
        """Works."""
        return 1

    @staticmethod
    def stand() -> int:
        """Works."""
        return 2

    @classmethod
    def make(cls) -> int:
        """Works."""
        return 3


@pytest.mark.parametrize("kind", KINDS)
def test_properties_are_left_alone(kind: str) -> None:
    async def main() -> None:
        async with await spawn(Unready, backend=kind) as unready:
            assert [await unready.go(), await unready.stand(), await unready.make()] == [1, 2, 3]
            with pytest.raises(AttributeError, match="Unready has no method 'state'"):
                unready.state  # noqa: B018
            with pytest.raises(AttributeError):
                copy.copy(unready)._nothing  # noqa: B018

    within(60, main)


def test_an_object_that_cannot_be_leaves_no_worker() -> None:
    class Lame(ThreadBackend):
        async def start(self, name: str, route: Any = None) -> None:
            await super().start(name, route)
            raise ActorError("lame")

        @classmethod
        def from_url(cls, url: str, **options: Any) -> Any:
            return cls()

    async def main() -> None:
        with pytest.raises(ActorError, match="object has no public method"):
            await spawn(object)
        with pytest.raises(ActorError, match="lame"):
            await spawn(dict, backend=Lame)  # type: ignore[arg-type]

    before = threading.active_count()
    within(20, main)
    assert threading.active_count() == before


# -------------------------------------------------------------------------------------------------- processes


def test_parameters_and_models_arrive_as_what_they_are() -> None:
    async def main() -> None:
        worker = ProcessBackend()
        await worker.start("w")
        for parameter in (torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(9000), requires_grad=False)):
            got = await worker.call(echo, (parameter,))
            assert type(got) is torch.nn.Parameter
            assert torch.equal(got, parameter)
            assert got.requires_grad == parameter.requires_grad
        model = await worker.call(echo, (torch.nn.Linear(2, 2),))
        assert all(type(each) is torch.nn.Parameter for each in model.parameters())
        await worker.close()

    within(60, main)


@linux
def test_results_that_are_held_cost_no_descriptors() -> None:
    """Each held one kept two descriptors at either end: 1024, a common limit, were used up by 300 results."""

    class Keeper:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def keep(self, x: Any) -> int:
            self.kept.append(x)
            return len(self.kept)

    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        async with ActorPool(ActorPoolConfig("process:")) as pool:
            results = await pool.run_many([SubTask(np.full, (3000, float(k))) for k in range(200)])
            there = await pool.run_subtask(SubTask(os.listdir, ("/proc/self/fd",)))
            assert [each[0] for each in results] == list(range(200))
            worker = pool.workers["process-0"].backend
            assert worker is not None
            async with await spawn(Keeper, backend=worker) as keeper:
                assert [await keeper.keep(each) for each in results] == list(range(1, 201))
                there += await pool.run_subtask(SubTask(os.listdir, ("/proc/self/fd",)))
            assert len(there) < 100
            assert len(os.listdir("/proc/self/fd")) < before + 20

    within(60, main)


@linux
def test_memory_that_cannot_be_had_costs_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    from byzflow.actors.arena import Arena

    def no(fd: int) -> Any:
        raise OSError("no memory")

    monkeypatch.setattr("byzflow.actors.arena.mapped", no)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no memory"):
        Arena().place([memoryview(bytes(100))])
    assert len(os.listdir("/proc/self/fd")) == len(before)


@linux
def test_a_pool_of_processes_ends_also_from_another_loop() -> None:
    pool = ActorPool(ActorPoolConfig("process:"))
    asyncio.run(pool.start())
    process = pool.workers["process-0"].backend._process  # type: ignore[union-attr]
    asyncio.run(pool.shutdown())
    assert process.returncode is not None


@pytest.mark.parametrize("how", ["stdin", "file"])
def test_functions_classes_and_errors_of_a_script_cross(how: str, tmp_path: Any) -> None:
    script = """
import asyncio
from dataclasses import dataclass
import torch
from byzflow.actors import ActorPool, ActorPoolConfig, SubTask

@dataclass
class Result:
    x: torch.Tensor

class Own(Exception):
    pass

def double(x):
    return Result(x * 2)

def fail():
    raise Own("mine")

async def main():
    async with ActorPool(ActorPoolConfig("process:")) as pool:
        assert isinstance(await pool.run_subtask(SubTask(double, (torch.ones(2),))), Result)
        try:
            await pool.run_subtask(SubTask(fail))
        except Own as error:
            print("own", error)

asyncio.run(main())
"""
    file = tmp_path / "script.py"
    file.write_text(script)
    arguments = ["-"] if how == "stdin" else [str(file)]
    done = subprocess.run([sys.executable, *arguments], input=script, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("own mine\n", "")


def test_a_process_that_cannot_begin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byzflow.actors.process.CHILD", "raise SystemExit(1)")

    async def main() -> None:
        async with ActorPool(ActorPoolConfig("process:")) as pool:
            with pytest.raises(WorkerDied):
                await pool.run_subtask(SubTask(echo, (1,), max_retries=2))

    within(60, main)
