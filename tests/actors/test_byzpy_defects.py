"""What went wrong in ByzPy's actors, by its number in the list of federation failures: none of it may come back."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import sys
import threading
import time
from collections import namedtuple
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import pytest
import torch

import byzflow
from byzflow.actors import ActorPool, ActorPoolConfig, SubTask, here, resolve, socket_link
from byzflow.actors.backend import Backend
from byzflow.actors.conformance import Account, calls_on_one_object_are_serial, doze, echo, fail, wait_for
from byzflow.actors.process import ProcessBackend
from byzflow.actors.tcp import ActorServer, TcpBackend
from byzflow.actors.wire import PREFIX
from byzflow.errors import ActorError, MailboxFull, MessageTimeout, WireError, WorkerDied
from byzflow.graph.messages import Message
from byzflow.registry import installed
from tests.campaigns.faults import holdings
from tests.campaigns.frames import MAGIC
from tests.campaigns.fuzz import ALLOW
from tests.campaigns.proxy import Proxy
from tests.core.test_imports import OWN_CHILDREN, ROOT, imports

PATIENCE = 20.0  # seconds after which something that must happen has not
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory file descriptors are Linux's")
KINDS = ["thread", pytest.param("process", marks=linux), "tcp"]


@asynccontextmanager
async def worker_of(kind: str, **allow: Any) -> AsyncIterator[Backend]:
    """A started worker of one of KINDS."""
    named = ALLOW | {f"{each.__module__}:{each.__qualname__}": each for each in allow.values()}
    async with ActorServer("tcp://127.0.0.1:0", allow=named) as server:
        worker = resolve(server.url if kind == "tcp" else f"{kind}:")
        await worker.start("w")
        try:
            yield worker
        finally:
            await worker.close()


def threads(count: int, **options: Any) -> ActorPool:
    return ActorPool([ActorPoolConfig("thread:", count)], **options)


async def until(what: Any) -> None:
    """Until what() holds."""
    async with asyncio.timeout(PATIENCE):
        while not what():
            await asyncio.sleep(0.01)


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.write_text, (self.file, "run")


async def told_nothing(server: ActorServer, data: bytes) -> float:
    """Seconds until a stranger that says this is cut off."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    began = time.perf_counter()
    writer.write(data)
    with suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    return time.perf_counter() - began


def test_b10_a_stranger_runs_nothing_and_allocates_nothing(tmp_path: Path) -> None:
    """An anonymous client ran code by a pickle, and a length header of 4 GiB was accepted."""

    async def main() -> None:
        async with ActorServer("tcp://127.0.0.1:0", allow=ALLOW) as server:
            pickled = pickle.dumps(Trap(tmp_path / "trap"))
            for data in (
                pickled.ljust(16, b"."),
                len(pickled).to_bytes(4, "big") + pickled,  # as ByzPy's wire has it
                PREFIX.pack(MAGIC, len(pickled), 0) + pickled,
            ):
                await told_nothing(server, data)
            held = holdings_of_memory()
            for length in (PREFIX.pack(MAGIC, 2**32 - 1, 0), PREFIX.pack(MAGIC, 16, 2**32)):
                await told_nothing(server, length)
            assert holdings_of_memory() - held < 1 << 20
            assert not list(tmp_path.iterdir())
            assert sum(sum(each.values()) for each in server.refused.values()) == 5

    asyncio.run(main())


def holdings_of_memory() -> int:
    """Bytes of address space: what was reserved counts, touched or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_b10_nobody_reads_anothers_mailbox_or_sends_in_anothers_name() -> None:
    """Anyone read any mailbox, and forged the sender."""

    async def main() -> None:
        async with ActorServer("tcp://127.0.0.1:0", allow=ALLOW) as server:
            seen: list[Any] = []

            async def route(to: str, message: Message) -> None:
                seen.append((to, message.sender))

            alice, mallory = TcpBackend(server.host, server.port), TcpBackend(server.host, server.port)
            await alice.start("alice", route)
            await mallory.start("alice", route)  # in the other's name
            await alice.deliver(Message("news", "for alice", "bob"))
            with pytest.raises(MessageTimeout):
                await mallory.receive("news", 0.05)
            assert (await alice.receive("news", PATIENCE)).payload == "for alice"
            for forged in (("bob", "news", 1, "carol"), ("bob", "news", 1)):
                with pytest.raises(ActorError, match="no such request: 'route'"):
                    await mallory._ask("route", *forged)
            assert seen == []
            await alice.close()
            await mallory.close()

    asyncio.run(main())


def test_b10_what_reads_peers_bytes_reaches_no_unpickler() -> None:
    """The whole wire was pickled."""
    reached: set[str] = set()
    waiting = ["byzflow.actors.tcp", "byzflow.actors.ucx", "byzflow.actors.ucx_child"]
    while waiting:
        name = waiting.pop()
        file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if name in reached or not file.exists():
            continue
        reached.add(name)
        found = {each for each in imports(file.read_text()) if each.startswith("byzflow.")}
        waiting += found | {each.rpartition(".")[0] for each in found}
    assert {"byzflow.actors.wire", "byzflow.actors.rpc", "byzflow.actors.host"} <= reached
    assert f"byzflow.actors.{OWN_CHILDREN.stem}" not in reached


class Counted(Account):
    """An account of which the server's side knows how many there are."""

    alive: ClassVar[WeakSet[Counted]] = WeakSet()

    def __init__(self, balance: float = 0.0) -> None:
        super().__init__(balance)
        self.alive.add(self)


def test_b11_an_error_of_a_call_costs_neither_the_connection_nor_its_objects() -> None:
    """After one exception the connection died and its state was lost; it was not made again, and actors leaked."""

    async def main() -> None:
        named = ALLOW | {f"{__name__}:Counted": Counted}
        async with ActorServer("tcp://127.0.0.1:0", allow=named) as server:
            worker = TcpBackend(server.host, server.port)
            await worker.start("w")
            number, _ = await worker.create(f"{__name__}:Counted", (5.0,), {})
            with pytest.raises(ValueError, match="no good"):
                await worker.call(fail, ("no good",))
            for k in range(100):
                assert await worker.call(echo, (k,)) == k
            assert await worker.invoke(number, "add", (1.0,), {}) == 6.0
            assert server.workers == 1
            await worker.close()
            pool = ActorPool([ActorPoolConfig(server.url)])
            assert await pool.run_subtask(SubTask(echo, (1,))) == 1
            first = pool.workers["tcp-0"].backend
            assert isinstance(first, TcpBackend)
            assert first._rpc is not None
            await first._rpc.link.close()  # as if the network had
            assert await pool.run_subtask(SubTask(echo, (2,))) == 2  # connected again
            assert pool.workers["tcp-0"].restarts == 1
            await pool.shutdown()
            await until(lambda: server.workers == 0)
            gc.collect()
            assert len(Counted.alive) == 0

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_b12_two_consumers_of_a_workers_channel_lose_no_message(kind: str) -> None:
    """Two consumers of one queue delivered 0 to 200 of 200 messages."""

    async def main() -> None:
        async with worker_of(kind) as worker:

            async def consume() -> list[Any]:
                return [(await worker.receive("numbers", PATIENCE)).payload for _ in range(100)]

            both = [asyncio.create_task(consume()) for _ in range(2)]
            for k in range(200):
                await worker.deliver(Message("numbers", k))
            one, other = await asyncio.gather(*both)
            assert sorted(one + other) == list(range(200))

    asyncio.run(main())


def test_b13_a_body_that_takes_long_does_not_lose_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Framing slipped when a body took more than 5 s; the messages after it vanished."""
    monkeypatch.setattr(socket_link, "BEAT", 0.1)
    monkeypatch.setattr(socket_link, "DEAD", 0.4)

    async def main() -> None:
        async with ActorServer("tcp://127.0.0.1:0") as server, Proxy(server.port, rate=400_000) as proxy:
            worker = TcpBackend("127.0.0.1", proxy.port)
            await worker.start("w")
            large = torch.randn(100_000)  # 400 KB: more than a second, and longer than any silence is borne
            began = time.perf_counter()
            await asyncio.gather(*(worker.deliver(Message("news", each)) for each in (large, "second", "third")))
            assert time.perf_counter() - began > 2 * socket_link.DEAD
            assert torch.equal((await worker.receive("news", PATIENCE)).payload, large)  # and all the way back
            assert [(await worker.receive("news", PATIENCE)).payload for _ in range(2)] == ["second", "third"]
            assert not server.refused
            await worker.close()

    asyncio.run(main())


def test_b18_workers_start_once_however_many_ask_at_once() -> None:
    """Eight calls at once on a pool of two that had not started began sixteen workers."""

    async def main() -> None:
        before = threading.active_count()
        pool = threads(2)
        assert threading.active_count() == before
        await asyncio.gather(*(pool.run_subtask(SubTask(echo, (k,))) for k in range(8)))
        assert sum("loop" in thread.name and "thread-" in thread.name for thread in threading.enumerate()) == 2
        await pool.shutdown()
        await pool.shutdown()
        with pytest.raises(ActorError, match="was shut down"):
            await pool.run_subtask(SubTask(echo, (1,)))

    asyncio.run(main())
    assert not any("thread-" in thread.name and "loop" in thread.name for thread in threading.enumerate())


def test_b18_configurations_without_a_name_do_not_collide() -> None:
    """Two unnamed configurations gave their workers the same names."""
    configs = [ActorPoolConfig("thread:", 2), ActorPoolConfig("thread:", 1), ActorPoolConfig("thread:", name="a")]
    assert list(ActorPool(configs).workers) == ["thread-0", "thread-1", "thread-2", "a-0"]


@linux
def test_b19_a_dead_worker_does_not_return_to_the_queue() -> None:
    """A dead worker was handed out again: 5 of 10 later tasks failed."""

    async def main() -> None:
        async with ActorPool([ActorPoolConfig("process:", 2)]) as pool:
            dying = asyncio.create_task(pool.run_subtask(SubTask(doze, (60.0,), affinity="process-0", require=True)))
            await asyncio.sleep(0.2)
            kill(pool, "process-0")  # at work
            with pytest.raises(WorkerDied):
                await dying
            assert await pool.run_many([SubTask(echo, (k,)) for k in range(10)]) == list(range(10))
            await kill(pool, "process-1")  # idle
            assert await pool.run_many([SubTask(echo, (k,)) for k in range(10)]) == list(range(10))

    asyncio.run(main())


def kill(pool: ActorPool, name: str) -> asyncio.Future[Any]:
    """kill -9; what it returns is done once this side has noticed."""
    worker = pool.workers[name].backend
    assert isinstance(worker, ProcessBackend)
    assert worker.pid is not None
    assert worker._running is not None
    os.kill(worker.pid, signal.SIGKILL)
    return asyncio.ensure_future(asyncio.wait([worker._running]))


def test_b19_who_waits_for_a_worker_that_will_not_come_back_hears_of_it() -> None:
    """A dead worker was handed out again; a replacement that fails must not be waited for instead."""

    class Once(ProcessBackend):
        made = 0

        async def start(self, name: str, route: Any = None) -> None:
            Once.made += 1
            if Once.made > 1:
                raise OSError("no memory left")
            await super().start(name, route)

    async def main() -> None:
        configs = [ActorPoolConfig(Once, name="only", capabilities=["rare"]), ActorPoolConfig("thread:")]
        async with ActorPool(configs, max_restarts=2) as pool:
            task = SubTask(doze, (60.0,), affinity="rare", require=True)
            both = [asyncio.create_task(pool.run_subtask(task)) for _ in range(2)]
            await asyncio.sleep(0.2)
            kill(pool, "only-0")
            outcomes = await asyncio.gather(*both, return_exceptions=True)
            assert all(isinstance(each, WorkerDied) for each in outcomes), outcomes
            assert Once.made == 3  # the first, and max_restarts more
            assert await pool.run_subtask(SubTask(echo, (1,))) == 1

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE))


def test_b20_a_call_goes_to_the_first_worker_that_is_free() -> None:
    """Calls were dealt out in turn: three of 0.4 s on two workers took 1.2 s."""
    third = threading.Event()
    both = threading.Barrier(2, timeout=PATIENCE)

    def long() -> bool:
        both.wait()
        return third.wait(PATIENCE)  # ends only after the third has run, on the other worker

    async def main() -> None:
        async with threads(2) as pool:
            tasks = [SubTask(long), SubTask(both.wait), SubTask(third.set)]
            long_ended, _, _ = await pool.run_many(tasks)
            assert long_ended

    asyncio.run(main())


def test_b22_the_first_failure_cancels_the_rest() -> None:
    """Subtasks that had not ended were neither cancelled nor awaited."""
    ran: list[int] = []

    def note(k: int) -> None:
        time.sleep(0.02)
        ran.append(k)

    async def main() -> None:
        async with threads(2) as pool:
            tasks = [SubTask(note, (0,)), SubTask(fail, ("boom",)), *(SubTask(note, (k,)) for k in range(1, 200))]
            before = asyncio.all_tasks()
            with pytest.raises(ValueError, match="boom"):
                await pool.run_many(tasks)
            assert asyncio.all_tasks() == before
            count = len(ran)
            await asyncio.sleep(0.1)
            assert len(ran) == count < 20
            assert await pool.run_subtask(SubTask(echo, ("still there",))) == "still there"

    asyncio.run(main())


def holds(x: torch.Tensor) -> None:
    time.sleep(60)


def fails_with(x: torch.Tensor) -> None:
    raise ValueError(f"{len(x)} are too many")


@linux
def test_b22_no_memory_or_descriptor_is_left_after_an_error_or_a_death() -> None:
    """Shared memory leaked when a call raised, or when its receiver died."""
    before = holdings()

    async def main() -> None:
        x = torch.ones(300_000)
        async with ActorPool([ActorPoolConfig("process:", 2)]) as pool:
            for _ in range(5):
                with pytest.raises(ValueError, match="too many"):
                    await pool.run_many([SubTask(fails_with, (x,))] * 4)
            dying = [asyncio.create_task(pool.run_subtask(SubTask(holds, (x,)))) for _ in range(2)]
            await asyncio.sleep(0.1)
            kill(pool, "process-0")
            kill(pool, "process-1")
            assert all(isinstance(each, WorkerDied) for each in await asyncio.gather(*dying, return_exceptions=True))
            assert torch.equal(await pool.run_subtask(SubTask(echo, (x,))), x)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    deadline = time.monotonic() + 5
    while (after := holdings()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {what: count for what, count in after.items() if count > before[what]} == {}


Pair = namedtuple("Pair", "one other")

VALUES: dict[str, Any] = {
    **{f"tensor {dtype}": torch.tensor([0, 1, 2]).to(dtype) for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool)},
    "tensor of 0 dimensions": torch.tensor(1.5),
    "bf16 of 0 dimensions": torch.tensor(1.5, dtype=torch.bfloat16),
    "empty tensor": torch.empty(2, 0, 3),
    "tensor that wants gradients": torch.ones(2, requires_grad=True),
    "large tensor that wants gradients": torch.ones(5000, requires_grad=True),
    "transposed tensor": torch.arange(12.0).reshape(3, 4).T,
    "large tensor": torch.arange(100_000.0),
    **{f"array {name}": np.array([0, 1, 2]).astype(name) for name in (
        "float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")},
    "array of 0 dimensions": np.array(1.5),
    "empty array": np.zeros((0, 2)),
    "array in Fortran's order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "large array": np.arange(100_000),
    "nothing": None, "words": "ü", "bytes": b"\x00\xff", "number": 2**63, "negative": -(2**63), "float": 0.1,
    "truth": True,
    "nested": {"a": [1, (2.5, None), {"b": torch.ones(2)}], 3: np.zeros(2)},
    "named tuple": Pair(1, torch.ones(2)),
}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Equal in kind, dtype, shape, device and content."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        marks = [(each.dtype, each.shape, each.device, each.requires_grad) for each in (one, other)]
        return marks[0] == marks[1] and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("kind", KINDS)
def test_b23_every_type_comes_back_as_it_was(kind: str) -> None:
    """Arrays became tensors; bf16, 0-d and empty ones failed; gradient flags, devices and named tuples were lost."""

    async def main() -> dict[str, Any]:
        async with worker_of(kind) as worker:
            return {name: await worker.call(echo, (value,)) for name, value in VALUES.items()}

    got = asyncio.run(main())
    gc.collect()
    for name, value in VALUES.items():  # after the worker's end: what was received stays readable
        expected = tuple(value) if kind == "tcp" and name == "named tuple" else value  # plain data has no classes
        assert same(got[name], expected), f"{name}: {got[name]!r}"
        if isinstance(value, np.ndarray):
            assert got[name].flags.writeable, name


@pytest.mark.parametrize("kind", KINDS[1:])  # on a thread nothing travels
def test_b23_what_cannot_travel_is_a_typed_error_and_the_worker_lives(kind: str) -> None:
    """An array of objects killed the worker."""
    values: list[Any] = [threading.Lock(), (each for each in ()), np.array([threading.Lock()], dtype=object)]
    if kind == "tcp":
        values += [np.array([None]), np.array(["a"]), torch.ones(2).to_sparse(), 1j, {1}]

    async def main() -> None:
        async with worker_of(kind) as worker:
            for value in values:
                with pytest.raises(WireError if kind == "tcp" else TypeError, match="cannot"):
                    await worker.call(echo, (value,))
                assert await worker.call(echo, (1,)) == 1
            if kind == "process":  # its own process: objects may cross
                assert list(await worker.call(echo, (np.array([None, "a"], dtype=object),))) == [None, "a"]

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:.*no GPU:UserWarning")
def test_b24_calls_on_one_object_of_a_gpu_worker_are_serial() -> None:
    """A GPU worker ran calls on one object at the same time; without a GPU this is a worker of the CPU."""

    async def main() -> None:
        worker = resolve("cuda:0")

        async def start(name: str = "w", route: Any = None) -> Backend:
            await worker.start(name, route)
            return worker

        await calls_on_one_object_are_serial(start)
        await worker.close()

    asyncio.run(main())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", [entry.operator.name for entry in installed().of_kind("aggregator")])
def test_b24_rows_on_a_device_give_a_result_there(name: str) -> None:
    """Seven operators returned a tensor of the CPU for rows of the GPU."""
    from tests.graph.test_byzpy_defects import NEEDED

    rows = torch.randn(12, 30, device="cuda")
    operator = byzflow.parse(f"{name}({NEEDED[name]})" if name in NEEDED else name, f=1)
    extras = {"server": rows.mean(0)} if "server" in operator.accepts else {}
    assert operator(rows, **extras).device == rows.device


async def later(value: Any) -> Any:
    """A coroutine function."""
    await asyncio.sleep(0)
    return [here().name, value]


class Waiting:
    """An object with a coroutine method."""

    async def later(self, value: Any) -> Any:
        """Its argument."""
        await asyncio.sleep(0)
        return value


@pytest.mark.parametrize("kind", KINDS)
def test_b25_coroutines_are_awaited_and_waiting_blocks_nobody(kind: str) -> None:
    """Async methods returned a coroutine or failed, and `recv` without a timeout blocked the worker."""

    async def main() -> None:
        async with worker_of(kind, later=later, Waiting=Waiting) as worker:
            assert await worker.call(later, (1,)) == ["w", 1]
            number, _ = await worker.create(Waiting, (), {})
            assert await worker.invoke(number, "later", (2,), {}) == 2
            inside = asyncio.create_task(worker.call(wait_for, ("news",)))
            outside = asyncio.create_task(worker.receive("other news"))  # no timeout
            for k in range(10):
                assert await worker.call(echo, (k,)) == k
            assert not inside.done()
            assert not outside.done()
            await worker.deliver(Message("news", "in", "a"))
            await worker.deliver(Message("other news", "out", "b"))
            assert await inside == ["in", "a"]
            assert await outside == Message("other news", "out", "b")

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE))


def test_b27_a_broadcast_tells_whom_it_did_not_reach() -> None:
    """A broadcast swallowed the errors of its sends."""

    async def main() -> None:
        async with threads(4) as pool:
            channel = await pool.open_channel("news")
            for k in range(1024):
                await channel.send("thread-0", "thread-1", k)
            dead = pool.workers["thread-2"].backend
            assert dead is not None
            await dead.close()
            errors = await channel.broadcast("thread-0", "hello")
            assert list(errors) == ["thread-1", "thread-2"]
            assert isinstance(errors["thread-1"], MailboxFull)
            assert isinstance(errors["thread-2"], WorkerDied)
            assert await channel.recv("thread-3", timeout=PATIENCE) == "hello"

    asyncio.run(main())


def test_b27_two_pools_in_one_process_do_not_meet() -> None:
    """Registries of the whole process made two runs overwrite each other."""

    async def speak(pool: ActorPool, word: str) -> list[Any]:
        channel = await pool.open_channel("news")
        for k in range(20):
            await channel.send("thread-0", "thread-1", [word, k])
        return [await channel.recv("thread-1", timeout=PATIENCE) for _ in range(20)]

    async def main() -> None:
        async with threads(2) as one, threads(2) as other:
            assert list(one.workers) == list(other.workers)
            said = await asyncio.gather(speak(one, "one"), speak(other, "other"))
            assert said == [[[word, k] for k in range(20)] for word in ("one", "other")]
            await one.shutdown()
            assert await other.run_subtask(SubTask(echo, ("still there",))) == "still there"

    asyncio.run(main())
