"""Hostile bytes by the million: at the parser, and at an actor server that an honest client uses meanwhile.

python -m tests.campaigns.fuzz --frames 1000000
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from byzflow.actors import socket_link
from byzflow.actors.conformance import NAMED, echo
from byzflow.actors.keys import Keys
from byzflow.actors.socket_link import SocketLink
from byzflow.actors.tcp import ActorServer, TcpBackend
from byzflow.actors.wire import PREFIX
from byzflow.errors import ActorError, LinkClosed, WireError, WorkerDied
from tests.campaigns.frames import HONEST, MAGIC, SMALL, hostile, parsed, refused, whole

ALLOW = {f"byzflow.actors.conformance:{name}": each for name, each in NAMED.items()}
GROWTH = 50  # MB of memory that a campaign may cost
MEDIAN = 200e-6  # seconds that a refusal may take in the middle: four times the aim, for a loaded machine
AT_ONCE = 16  # hostile connections
Tick = Callable[[int], object]


def resident() -> float:
    """MB of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


@dataclass
class Outcome:
    """What became of hostile bytes."""

    frames: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by kind
    read: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # of byzflow: there must be none
    honest: int = 0  # right answers to the honest client
    median: float = 0.0  # seconds for a refusal, or for an honest answer
    worst: float = 0.0


def at_the_parser(frames: int, random: Random, tick: Tick = lambda _: None) -> Outcome:
    """Each frame is a WireError or a value; nothing else is raised, and honest frames between them read as ever."""
    outcome = Outcome()
    honest = [(each, whole(each)) for each in HONEST]
    took: list[float] = []
    for k in range(frames):
        item = hostile(random)
        data = item.data.ljust(PREFIX.size, b"\0")
        began = time.perf_counter()
        try:
            parsed(data, SMALL)
            outcome.read[item.kind] += 1
        except WireError:
            took.append(time.perf_counter() - began)
            outcome.refused[item.kind] += 1
        except Exception as error:
            outcome.faults.append(f"{item.kind}: {error!r} for {data[:80]!r}")
        if k % 1000 == 0:
            sent, text = honest[k // 1000 % len(honest)]
            if repr(parsed(text)) != repr(sent):
                outcome.faults.append(f"an honest frame read as {parsed(text)}")
            outcome.honest += 1
            del took[:-100_000]
            tick(1000)
    outcome.frames, outcome.median, outcome.worst = frames, statistics.median(took), max(took)
    return outcome


@contextmanager
def impatient(silence: float = 2.0) -> Iterator[None]:
    """Links that bear less silence than they do elsewhere, so that slow and idle peers end within a test's time."""
    kept = socket_link.BEAT, socket_link.DEAD
    socket_link.BEAT, socket_link.DEAD = silence / 4, silence
    try:
        yield
    finally:
        socket_link.BEAT, socket_link.DEAD = kept


async def at_a_server(connections: int, random: Random, tick: Tick = lambda _: None) -> Outcome:
    """Each connection that must be refused is, once, and no other; the honest client gets every answer, and right."""
    outcome = Outcome(frames=connections)
    waiting = iter(range(connections))
    took: list[float] = []
    with impatient():
        async with ActorServer("tcp://127.0.0.1:0", allow=ALLOW, connections=1000) as server:
            client = TcpBackend(server.host, server.port)
            await client.start("honest")

            async def be_honest() -> None:
                while True:
                    x = torch.full((random.randint(0, 2000),), float(outcome.honest))
                    began = time.perf_counter()
                    if not torch.equal(await client.call(echo, (x,)), x):
                        outcome.faults.append("a wrong answer to the honest client")
                    took.append(time.perf_counter() - began)
                    outcome.honest += 1
                    await asyncio.sleep(0.002)

            async def attack() -> None:
                for k in waiting:
                    try:
                        kind, bad = await _attack(server, random)
                    except ActorError as error:  # of a connection that had done nothing yet
                        outcome.faults.append(f"{error}; the server counted {server.refused}"[-400:])
                        continue
                    (outcome.refused if bad else outcome.read)[kind] += 1
                    if k % 100 == 0:
                        tick(100)

            honest = asyncio.create_task(be_honest())
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(AT_ONCE):
                        group.create_task(attack())
            finally:
                honest.cancel()
                ended = await asyncio.gather(honest, return_exceptions=True)
            outcome.faults += [f"the honest client: {error!r}" for error in ended if isinstance(error, Exception)]
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    while server.workers > 1:
                        await asyncio.sleep(0.01)  # until the last have been noticed
            counted = sum(sum(reasons.values()) for reasons in server.refused.values())
            if server.workers != 1 or counted != outcome.refused.total():
                outcome.faults.append(
                    f"{outcome.refused.total()} bad connections, {counted} counted, {server.workers - 1} still served"
                )
            if "" in server.refused or "unknown" in server.refused:
                outcome.faults.append("a refusal without a peer")
            await client.close()
    outcome.median, outcome.worst = statistics.median(took), max(took)
    return outcome


async def _attack(server: ActorServer, random: Random) -> tuple[str, bool]:
    """One hostile connection: what it did, and if it must be refused for that."""
    match random.randrange(200):
        case 0:
            return "idle, before a hello", await _silent(server, b"")
        case 1:
            return "slow, before a hello", await _silent(server, PREFIX.pack(MAGIC, 4000, 0))
        case 2:
            await _say(await _link(server), b"", end=False)
            return "idle", True
        case 3:
            await _say(await _link(server), PREFIX.pack(MAGIC, 4000, 0), end=False)
            return "slow", True
        case 4 | 5 | 6 | 7:
            return "spoofed sender", await _spoofed(server, random)
        case each if each < 60:  # strangers
            while not refused((item := hostile(random)).data, 0) or item.kind == "changed bytes":
                pass
            return item.kind, await _silent(server, item.data, end=True)
    link = await _link(server)
    item = hostile(random, link._sent)
    bad = refused(item.data, link._sent)
    await _say(link, item.data)
    return item.kind, bad


async def _silent(server: ActorServer, data: bytes, end: bool = False) -> bool:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    with suppress(OSError):
        writer.write(data)
        if end:
            writer.write_eof()
        while await reader.read(1 << 16):
            pass
    writer.close()
    return True


async def _link(server: ActorServer) -> SocketLink:
    link: Any = await TcpBackend(server.host, server.port).connect("mallory")
    return link  # type: ignore[no-any-return]


async def _say(link: SocketLink, data: bytes, end: bool = True) -> None:
    """Write bytes behind the link's back, and wait until the other side has ended it."""
    assert link._transport is not None
    assert link._watch is not None
    link._watch.cancel()  # no further sign of life
    link._transport.write(data)
    if end:
        with suppress(OSError):
            link._transport.write_eof()
    with suppress(LinkClosed):
        while True:
            await link.recv()
    await link.close()


async def _spoofed(server: ActorServer, random: Random) -> bool:
    """In another's name: to the honest worker's objects, and to its mailbox. Answered by errors; not a broken link."""
    worker = TcpBackend(server.host, server.port)
    await worker.start("honest")
    for ask in (
        worker.invoke(random.randint(0, 9), "add", (1.0,), {}),
        worker._ask("route", "honest", "news", 1, "honest"),
        worker._ask("route", "honest", "news", 1),
    ):
        try:
            await ask
        except WorkerDied:
            raise
        except ActorError:
            continue
        raise AssertionError("a stranger's call in another's name was served")
    await worker.close()
    return False


async def without_a_right_key(count: int) -> Outcome:
    """Wrong keys, and none: no connection comes about, and the honest one goes on."""
    outcome = Outcome(frames=count)
    with tempfile.TemporaryDirectory() as folder:
        keys = {name: Keys.new(name, Path(folder) / name) for name in ("server", "client", "stranger")}
        keys["server"].trust("client", keys["client"].certificate)
        for name in ("client", "stranger"):
            keys[name].trust("server", keys["server"].certificate)
        async with ActorServer("tcp://127.0.0.1:0", keys=keys["server"].folder, allow=ALLOW) as server:
            client = TcpBackend(server.host, server.port, keys=keys["client"].folder)
            await client.start("honest")
            for k in range(count):
                kind, options = (("no key", {}), ("wrong key", {"keys": keys["stranger"].folder}))[k % 2]
                worker = TcpBackend(server.host, server.port, timeout=2.0, **options)
                try:
                    await worker.start("honest")
                    outcome.faults.append(f"{kind}: let in")
                except ActorError:
                    outcome.refused[kind] += 1
                if await client.call(echo, (k,)) == k:
                    outcome.honest += 1
            counted = sum(sum(reasons.values()) for reasons in server.refused.values())
            if server.workers != 1 or counted != count:
                outcome.faults.append(f"{count} without a right key, {counted} counted, {server.workers - 1} served")
            await client.close()
    return outcome


def table(name: str, outcome: Outcome, seconds: float, growth: float) -> str:
    """What is printed of one part."""
    lines = [
        f"{name}: {outcome.frames} in {seconds:.1f} s, {outcome.refused.total()} refused, {outcome.read.total()} read, "
        f"{outcome.honest} honest right, median {outcome.median * 1e6:.0f} us, worst {outcome.worst * 1e3:.1f} ms, "
        f"memory grew by {growth:.1f} MB"
    ]
    for kind in sorted(outcome.refused.keys() | outcome.read.keys()):
        lines.append(f"    {kind:<24} {outcome.refused[kind]:>8} refused {outcome.read[kind]:>8} read")
    return "\n".join([*lines, *(f"    FAULT {fault}" for fault in outcome.faults[:20])])


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if byzflow has failed anywhere."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaigns.fuzz", description="Hostile bytes, by the million."
    )
    parser.add_argument("--frames", type=int, default=1_000_000, help="in all; one in fifty is a connection")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    live = options.frames // 50
    random = Random(options.seed)
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    failed = False
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:

        def part(name: str, total: int, run: Callable[[Tick], Outcome]) -> None:
            nonlocal failed
            task = progress.add_task(name, total=total)
            before, began = resident(), time.perf_counter()
            outcome = run(lambda count: progress.advance(task, count))
            growth = resident() - before
            progress.update(task, completed=total)
            progress.console.print(table(name, outcome, time.perf_counter() - began, growth), highlight=False)
            failed |= bool(outcome.faults) or growth > GROWTH

        at_the_parser(2000, random)  # so that what is loaded once is not counted as growth
        asyncio.run(at_a_server(200, random))
        part("at the parser", options.frames - live, lambda tick: at_the_parser(options.frames - live, random, tick))
        part("at a server", live, lambda tick: asyncio.run(at_a_server(live, random, tick)))
        part("without a right key", 200, lambda _: asyncio.run(without_a_right_key(200)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
