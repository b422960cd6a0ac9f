"""The contract that every backend passes, a plugin's as much as byzflow's own.

    from byzflow.testing import check_backend

    def test_contract():
        check_backend("mine://host")

Each check is a coroutine over a function that starts a fresh worker; the first that fails raises AssertionError and
says what was promised. The functions and the class that it runs there are in this file: a backend that takes names
only must register them (`NAMED`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any

import numpy as np
import torch

from byzflow.actors.backend import Backend, resolve
from byzflow.actors.host import here
from byzflow.errors import ActorError, MessageTimeout, WorkerDied
from byzflow.graph.messages import Message


def echo(value: Any) -> Any:
    """The same again."""
    return value


def fail(message: str) -> None:
    """Raises ValueError."""
    raise ValueError(message)


class Odd(Exception):
    """An error that cannot be made again from what it tells."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def stop(how: str) -> None:
    """End in a way that is no plain error."""
    if how == "exhausted":
        next(iter(()))
    elif how == "exit":
        raise SystemExit(3)
    elif how == "cancelled":
        raise asyncio.CancelledError
    elif how == "interrupted":
        raise BaseExceptionGroup("several", [KeyboardInterrupt()])
    raise Odd(1, 2)


async def stop_inside(how: str) -> None:
    """As `stop`, in a coroutine."""
    stop(how)


def doze(seconds: float) -> float:
    """Sleep, holding the worker's thread."""
    time.sleep(seconds)
    return seconds


async def wait_for(channel: str) -> Any:
    """The payload and the sender of the worker's next message."""
    message = await here().receive(channel, 10)
    return [message.payload, message.sender]


async def pass_on(to: str, channel: str, payload: Any) -> None:
    """Send to another worker."""
    await here().send(to, channel, payload)


class Account:
    """An object with state."""

    def __init__(self, balance: float = 0.0) -> None:
        self.balance = balance
        self._inside = 0

    def add(self, amount: float) -> float:
        """The new balance."""
        assert not self._inside, "two calls on one object overlap"
        self._inside += 1
        time.sleep(0.002)
        self.balance += amount
        self._inside -= 1
        return self.balance

    async def wait(self) -> str:
        """Until cancelled."""
        await asyncio.sleep(3600)
        return "never"


NAMED = {each.__name__: each for each in (echo, fail, stop, stop_inside, doze, wait_for, pass_on, Account)}
Start = Callable[..., Awaitable[Backend]]


def check_backend(make: str | Callable[[], Backend], **options: Any) -> None:
    """Raise AssertionError at the first promise that the backend breaks; `make` is a URL or makes a worker."""
    for check in CHECKS:
        asyncio.run(_checked(check, make, options))


async def _checked(check: Callable[[Start], Awaitable[None]], make: Any, options: dict[str, Any]) -> None:
    started: list[Backend] = []

    async def start(name: str = "worker", route: Any = None) -> Backend:
        backend = resolve(make, **options)
        await backend.start(name, route)
        started.append(backend)
        return backend

    try:
        async with asyncio.timeout(60):
            await check(start)
    finally:
        for backend in started:
            await backend.close()


async def values_cross(start: Start) -> None:
    """Tensors and arrays of every kind come back equal, with their dtype and shape."""
    worker = await start()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
        for shape in ((), (0,), (3,), (2, 0), (4, 5)):
            sent = torch.arange(20, dtype=torch.float32)[: int(np.prod(shape))].reshape(shape).to(dtype)
            got = await worker.call(echo, (sent,))
            assert torch.equal(got, sent), f"{dtype} of shape {shape} changed on the way"
            assert (got.dtype, got.shape) == (sent.dtype, sent.shape), f"{dtype} of shape {shape} became {got.dtype}"
    strided = torch.arange(12.0).reshape(3, 4).T
    assert torch.equal(await worker.call(echo, (strided,)), strided), "a strided tensor changed on the way"
    assert (await worker.call(echo, (torch.ones(2, requires_grad=True),))).requires_grad, "the grad flag was lost"
    for array in (
        np.arange(6).reshape(2, 3),
        np.array([1, np.nan, np.inf], dtype=np.float32),
        np.zeros((0, 2)),
        np.array(3.5),
        np.ones(10_000),
    ):
        got = await worker.call(echo, (array,))
        assert isinstance(got, np.ndarray), f"an array became a {type(got).__name__}"
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype, f"{array.dtype} became {got.dtype}"
        assert got.flags.writeable, f"an array of {array.size} numbers came back read only"
    nested = {"a": [1, 2.5, None, True, "ü", b"\\x00"], "b": {"c": [torch.ones(2)]}}
    got = await worker.call(echo, (), {"value": nested})
    assert got["a"] == nested["a"], "plain values changed on the way"
    assert torch.equal(got["b"]["c"][0], torch.ones(2)), "a tensor in a mapping changed on the way"


async def errors_cross_and_leave_the_worker_usable(start: Start) -> None:
    """An error of the call has its own type, and a hundred calls after it work."""
    worker = await start()
    number, _ = await worker.create(Account, (1.0,), {})
    for _ in range(3):
        try:
            await worker.call(fail, ("no good",))
        except ValueError as error:
            assert "no good" in str(error), f"the message was lost: {error}"
        else:
            raise AssertionError("an error of the call was swallowed")
    for k in range(100):
        assert await worker.call(echo, (k,)) == k, "a call after an error failed"
    assert await worker.invoke(number, "add", (1.0,), {}) == 2.0, "an object was lost with an error of a call"


async def every_end_of_a_call_is_told(start: Start) -> None:
    """What is no error, and errors that cannot be rebuilt: the caller hears of each, and the worker lives."""
    worker = await start()
    ways = product((stop, stop_inside), ("exhausted", "exit", "cancelled", "interrupted", "odd"))
    for fn, how in ways:
        try:
            async with asyncio.timeout(20):
                await worker.call(fn, (how,))
        except TimeoutError:
            raise AssertionError(f"{how}: the caller waits for ever") from None
        except Exception as error:
            assert not isinstance(error, WorkerDied), f"{how}: it ended the worker"
        else:
            raise AssertionError(f"{how}: the call seems to have worked")
        assert await worker.call(echo, (how,)) == how, f"a call after {how} failed"


async def calls_on_one_object_are_serial(start: Start) -> None:
    """Forty calls at once lose no update."""
    worker = await start()
    number, methods = await worker.create(Account, (), {"balance": 0.0})
    assert {"add", "wait"} <= set(methods), f"public methods are missing from {methods}"
    await asyncio.gather(*(worker.invoke(number, "add", (1.0,), {}) for _ in range(40)))
    assert await worker.invoke(number, "add", (0.0,), {}) == 40.0, "updates were lost"


async def what_is_not_there_is_an_actor_error(start: Start) -> None:
    """Unknown objects and methods, private ones too; dropping twice is none."""
    worker = await start()
    number, _ = await worker.create(Account, (), {})
    for target, method in ((number, "ad"), (number, "_inside"), (number, "__init__"), (number + 999, "add")):
        try:
            await worker.invoke(target, method, (), {})
        except ActorError:
            continue
        raise AssertionError(f"{method!r} of object {target} could be called")
    await worker.drop(number)
    await worker.drop(number)
    try:
        await worker.invoke(number, "add", (1.0,), {})
    except ActorError:
        return
    raise AssertionError("a dropped object could be called")


async def waiting_does_not_block(start: Start) -> None:
    """While one call waits for a message, others go on; the message is taken once, with its sender."""
    worker = await start()
    waiting = asyncio.create_task(worker.call(wait_for, ("news",)))
    await asyncio.sleep(0.05)
    assert await worker.call(echo, (1,)) == 1, "a waiting call blocks the others"
    await worker.deliver(Message("news", None, "somebody"))
    assert await waiting == [None, "somebody"], "the message or its sender was lost"
    try:
        await worker.receive("news", 0.05)
    except MessageTimeout:
        return
    raise AssertionError("a message was delivered twice, or a timeout gave a value")


async def messages_leave_in_the_workers_name(start: Start) -> None:
    """What a worker sends goes through the route, with the worker as sender."""
    seen: list[tuple[str, Message]] = []

    async def route(to: str, message: Message) -> None:
        seen.append((to, message))

    worker = await start("alice", route)
    await worker.call(pass_on, ("bob", "news", [1, 2]))
    assert seen == [("bob", Message("news", [1, 2], "alice"))], f"routed {seen}"


async def cancelling_leaves_nothing_running(start: Start) -> None:
    """A cancelled call ends, and the worker serves the next."""
    worker = await start()
    number, _ = await worker.create(Account, (), {})
    waiting = asyncio.create_task(worker.invoke(number, "wait", (), {}))
    await asyncio.sleep(0.05)
    waiting.cancel()
    outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
    assert isinstance(outcome, asyncio.CancelledError), f"a cancelled call gave {outcome!r}"
    assert await worker.call(echo, ("next",)) == "next", "the worker did not survive a cancelled call"


async def closing_ends_calls_in_flight(start: Start) -> None:
    """They raise WorkerDied, as does every later call; closing twice does no harm."""
    worker = await start()
    number, _ = await worker.create(Account, (), {})
    waiting = asyncio.create_task(worker.invoke(number, "wait", (), {}))
    await asyncio.sleep(0.05)
    await worker.close()
    await worker.close()
    for late in (waiting, worker.call(echo, (1,))):
        try:
            await late
        except WorkerDied:
            continue
        raise AssertionError("a call on a closed worker did not raise WorkerDied")


CHECKS: tuple[Callable[[Start], Awaitable[None]], ...] = (
    values_cross,
    errors_cross_and_leave_the_worker_usable,
    every_end_of_a_call_is_told,
    calls_on_one_object_are_serial,
    what_is_not_there_is_an_actor_error,
    waiting_does_not_block,
    messages_leave_in_the_workers_name,
    cancelling_leaves_nothing_running,
    closing_ends_calls_in_flight,
)
