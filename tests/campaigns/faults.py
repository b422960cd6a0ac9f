"""Faults of workers and of the network, again and again; after each, everything works and nothing is left behind.

python -m tests.campaigns.faults --repeats 100
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from byzflow.actors import ActorPool, ActorPoolConfig, SubTask
from byzflow.actors.conformance import NAMED, doze, echo
from byzflow.actors.process import ProcessBackend
from byzflow.actors.tcp import ActorServer, TcpBackend
from byzflow.errors import WorkerDied
from byzflow.graph import CallableOp, ComputationGraph, GraphNode, NodeScheduler
from tests.campaigns.proxy import Proxy

ALLOW = {f"byzflow.actors.conformance:{name}": each for name, each in NAMED.items()}
OFTEN = 10**6  # restarts: the campaign kills one worker after the other
PATIENCE = 60.0  # seconds for one fault and what follows it
Once = Callable[[Random], Awaitable[None]]


async def calls(pool: ActorPool, count: int, **options: Any) -> None:
    """So many calls, each with its own answer."""
    tasks = [SubTask(echo, (k,), **options) for k in range(count)]
    assert await pool.run_many(tasks) == list(range(count))


async def through(pool: ActorPool, random: Random, fault: Callable[[], Awaitable[None]]) -> None:
    """A hundred calls, among which the fault happens; all are answered, and so are those after them."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(pool.run_many([SubTask(doze, (0.002,), max_retries=20) for _ in range(100)]))
        await asyncio.sleep(random.uniform(0, 0.08))
        await fault()
    assert running.result() == [0.002] * 100
    await calls(pool, 20, max_retries=1)  # a call that was under way when a worker died costs one


@asynccontextmanager
async def a_process_is_killed() -> AsyncIterator[Once]:
    """kill -9 of one of two worker processes in the middle of a hundred calls."""
    async with ActorPool([ActorPoolConfig("process:", 2)], max_restarts=OFTEN) as pool:

        async def once(random: Random) -> None:
            async def kill() -> None:
                alive = [each.backend for each in pool.workers.values() if isinstance(each.backend, ProcessBackend)]
                pid = random.choice(alive).pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)

            await through(pool, random, kill)

        yield once


@asynccontextmanager
async def an_idle_process_is_killed() -> AsyncIterator[Once]:
    """kill -9 of a worker process that has nothing to do: no later call may hear of it."""
    async with ActorPool([ActorPoolConfig("process:", 2)], max_restarts=OFTEN) as pool:

        async def once(random: Random) -> None:
            worker = random.choice(list(pool.workers.values())).backend
            assert isinstance(worker, ProcessBackend)
            assert worker.pid is not None
            assert worker._running is not None
            os.kill(worker.pid, signal.SIGKILL)
            await asyncio.wait([worker._running])  # its end has been noticed
            await calls(pool, 20)

        yield once


@asynccontextmanager
async def a_worker_never_answers() -> AsyncIterator[Once]:
    """A call that does not come back ends its worker after its timeout; the others go on."""
    async with ActorPool([ActorPoolConfig("process:", 2)], max_restarts=OFTEN) as pool:

        async def once(random: Random) -> None:
            silent = SubTask(doze, (3600.0,), timeout=random.uniform(0.02, 0.2))
            hung = asyncio.create_task(pool.run_subtask(silent))
            await calls(pool, 20)
            with_error = (await asyncio.gather(hung, return_exceptions=True))[0]
            assert isinstance(with_error, WorkerDied), with_error
            assert "no answer within" in str(with_error)
            await calls(pool, 20)

        yield once


@asynccontextmanager
async def a_server_is_killed() -> AsyncIterator[Once]:
    """kill -9 of a server's process in the middle of a hundred calls; another comes up at its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = await _server_process(port)
    pool = ActorPool([ActorPoolConfig(f"tcp://127.0.0.1:{port}", 2)], max_restarts=OFTEN)
    await pool.start()

    async def once(random: Random) -> None:
        async def kill() -> None:
            nonlocal server
            server.kill()
            await server.wait()
            server = await _server_process(port)

        await through(pool, random, kill)

    try:
        yield once
    finally:
        await pool.shutdown()
        server.kill()
        await server.wait()


async def _server_process(port: int) -> asyncio.subprocess.Process:
    code = f"import asyncio; from tests.campaigns.faults import serve; asyncio.run(serve({port}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def serve(port: int) -> None:
    """Be the server that is killed."""
    async with ActorServer(f"tcp://127.0.0.1:{port}", allow=ALLOW):
        print("ready", flush=True)
        await asyncio.sleep(3600)


@asynccontextmanager
async def a_server_restarts() -> AsyncIterator[Once]:
    """A server ends in good order, and another begins at its address, while calls go on."""
    server = await ActorServer("tcp://127.0.0.1:0", allow=ALLOW).__aenter__()
    pool = ActorPool([ActorPoolConfig(server.url, 2)], max_restarts=OFTEN)
    await pool.start()

    async def once(random: Random) -> None:
        async def restart() -> None:
            nonlocal server
            await server.__aexit__(None, None, None)
            await asyncio.sleep(random.uniform(0, 0.3))
            server = await ActorServer(server.url, allow=ALLOW).__aenter__()

        await through(pool, random, restart)

    try:
        yield once
    finally:
        await pool.shutdown()
        await server.__aexit__(None, None, None)


@asynccontextmanager
async def a_connection_is_cut() -> AsyncIterator[Once]:
    """The connections break within a frame, in whichever direction; the calls are made again."""
    async with ActorServer("tcp://127.0.0.1:0", allow=ALLOW) as server, Proxy(server.port) as proxy:
        config = ActorPoolConfig(lambda: TcpBackend("127.0.0.1", proxy.port), 2)
        async with ActorPool([config], max_restarts=OFTEN) as pool:

            async def once(random: Random) -> None:
                before, proxy.cut = proxy.cuts, random.randint(1, 1_000_000)
                sent = [torch.full((random.randint(1, 20_000),), float(k)) for k in range(20)]
                got = await pool.run_many([SubTask(echo, (x,), max_retries=10) for x in sent])
                assert all(torch.equal(one, other) for one, other in zip(sent, got, strict=True))
                if proxy.cuts == before:  # it was too far away to be reached
                    proxy.cut = None
                await calls(pool, 5, max_retries=1)
                assert len(server.refused) <= 1001

            yield once


@asynccontextmanager
async def a_run_is_cancelled() -> AsyncIterator[Once]:
    """A graph over threads, a process and a server is cancelled anywhere: no task, call or message of it is left."""

    async def waits() -> None:
        await asyncio.sleep(3600)

    async with ActorServer("tcp://127.0.0.1:0", allow=ALLOW) as server:
        configs = [ActorPoolConfig("thread:"), ActorPoolConfig("process:"), ActorPoolConfig(server.url)]
        async with ActorPool(configs) as pool:
            await calls(pool, 30)
            workers = {name: worker.backend for name, worker in pool.workers.items()}

            async def many() -> None:
                await pool.run_many([SubTask(doze, (0.004,)) for _ in range(200)])

            graph = ComputationGraph(
                [GraphNode("many", CallableOp(many)), GraphNode("waits", CallableOp(waits))], outputs=["many", "waits"]
            )

            async def once(random: Random) -> None:
                before = asyncio.all_tasks()
                run = asyncio.create_task(NodeScheduler(graph, pool=pool).run())
                await asyncio.sleep(random.uniform(0, 0.1))
                run.cancel()
                outcome = (await asyncio.gather(run, return_exceptions=True))[0]
                assert isinstance(outcome, asyncio.CancelledError), outcome
                assert not (left := asyncio.all_tasks() - before - {run}), left
                assert len(pool._queue._idle) == pool.size
                assert not pool._queue._waiting
                await calls(pool, 9)
                assert workers == {name: worker.backend for name, worker in pool.workers.items()}

            yield once


FAULTS: dict[str, Callable[[], AbstractAsyncContextManager[Once]]] = {
    each.__name__: each
    for each in (
        a_process_is_killed,
        an_idle_process_is_killed,
        a_worker_never_answers,
        a_server_is_killed,
        a_server_restarts,
        a_connection_is_cut,
        a_run_is_cancelled,
    )
}


@dataclass
class Record:
    """How one fault's repeats went."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what was not there before


def holdings() -> dict[str, int]:
    """What this process holds that a fault might leave behind."""
    gc.collect()
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    segments = sum("memfd:byzflow" in line for line in Path("/proc/self/maps").read_text().splitlines())
    return {
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(children),
        "shared segments": segments,
        "abandoned names in /dev/shm": len(abandoned()),
    }


def abandoned() -> set[str]:
    """Names in /dev/shm that no living process has open or mapped: others' tests may have some of their own there."""
    names = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}
    for process in Path("/proc").glob("[0-9]*"):
        if not names:
            break
        with suppress(OSError):  # it ended meanwhile
            names -= {line.split(maxsplit=5)[-1] for line in (process / "maps").read_text().splitlines()}
            names -= {os.readlink(each) for each in (process / "fd").iterdir()}
    return names


def repeat(name: str, repeats: int, seed: int = 0, tick: Callable[[], object] = lambda: None) -> Record:
    """One fault, so many times."""
    record = Record()
    before = holdings()
    asyncio.run(_repeat(record, name, repeats, seed, tick))
    deadline = time.monotonic() + 5  # what was told to end needs a moment
    while (after := holdings()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    record.left += [f"{after[what] - count:+d} {what}" for what, count in before.items() if after[what] > count]
    return record


async def _repeat(record: Record, name: str, repeats: int, seed: int, tick: Callable[[], object]) -> None:
    async with FAULTS[name]() as once:
        for k in range(repeats):
            began = time.perf_counter()
            try:
                async with asyncio.timeout(PATIENCE):
                    await once(Random(seed * 1_000_003 + k))
            except Exception as error:
                record.failures.append(f"repeat {k}: {type(error).__name__}: {error}")
            record.seconds.append(time.perf_counter() - began)
            tick()
    if len(tasks := asyncio.all_tasks()) > 1:
        record.left.append(f"{len(tasks) - 1} tasks")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if anything failed, or was left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.faults", description="Faults, again and again.")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(FAULTS), nargs="*", default=list(FAULTS))
    options = parser.parse_args(arguments)
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
    from rich.table import Table

    result = Table("fault", "repeats", "failed", "left behind", "median s", "worst s")
    bad: list[str] = []
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        for name in options.only:
            task = progress.add_task(name, total=options.repeats)
            record = repeat(name, options.repeats, options.seed, lambda task=task: progress.advance(task))
            seconds = sorted(record.seconds) or [0.0]
            cells = (len(record.seconds), len(record.failures), ", ".join(record.left) or "nothing")
            times = (f"{seconds[len(seconds) // 2]:.2f}", f"{seconds[-1]:.2f}")
            result.add_row(name, *map(str, cells), *times)
            bad += [f"{name}: {each}" for each in (*record.failures, *record.left)]
    console = Console()
    console.print(result)
    for each in bad[:40]:
        console.print(each, highlight=False, markup=False)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
