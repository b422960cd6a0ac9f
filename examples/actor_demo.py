"""Actors: any class on a thread, in a process or on another machine, and mailboxes between them.

python examples/actor_demo.py --demo all
python examples/actor_demo.py --demo remote --connect tcp://127.0.0.1:7000     # byzflow actor-server listens there
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import torch

import byzflow
from byzflow.actors import ActorPool, ActorPoolConfig, SubTask, spawn
from byzflow.errors import ActorError, MessageTimeout


class Calculator:
    """Nothing in it knows of actors."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.history: list[str] = []

    def add(self, a: float, b: float) -> float:
        self.history.append(f"{a} + {b}")
        return a + b

    def told(self) -> str:
        return f"{self.name} computed {', '.join(self.history)}"


class Collector:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def take(self, value: float) -> int:
        self.values.append(value)
        return len(self.values)

    def total(self) -> float:
        return sum(self.values)


async def basic() -> None:
    """The same calls, wherever the object is."""
    for backend in ("thread", "process"):
        async with await spawn(Calculator, f"the {backend}", backend=backend) as calculator:
            await calculator.add(1, 2)
            await calculator.add(3, 4)
            print(await calculator.told())


def mixed() -> ActorPool:
    """A pool of a thread and a process."""
    return ActorPool([ActorPoolConfig("thread:"), ActorPoolConfig("process:")])


async def channel() -> None:
    """Messages from a worker on a thread to one in a process."""
    async with mixed() as pool:
        news = await pool.open_channel("news")
        for number in range(3):
            await news.send("thread-0", "process-0", {"number": number, "data": torch.arange(number + 1)})
        for _ in range(3):
            message = await news.receive("process-0", timeout=5)
            print(f"process-0 got {message.payload['data'].tolist()} from {message.sender}")


async def channel_detail() -> None:
    """One to all; a timeout is not a payload of None; names that are not there."""
    async with mixed() as pool:
        news = await pool.open_channel("news")
        unreached = await news.broadcast("thread-0", None)
        print(f"broadcast: {len(unreached)} not reached, the payload is {await news.recv('process-0', timeout=5)}")
        try:
            await news.recv("process-0", timeout=0.05)
        except MessageTimeout as error:
            print(error)
        try:
            await news.send("thread-0", "process-7", 1)
        except ActorError as error:
            print(error)


async def pipeline() -> None:
    """Three calculators on threads, a collector in a process."""
    calculators = [await spawn(Calculator, f"calculator {k}") for k in range(3)]
    async with await spawn(Collector, backend="process") as collector:
        sums = await asyncio.gather(*(each.add(10 * k, k) for k, each in enumerate(calculators)))
        for value in sums:
            await collector.take(value)
        print(f"the sums {sums} add up to {await collector.total()}")
    for each in calculators:
        await each.aclose()


async def remote(url: str | None) -> None:
    """A rule on another machine, by its name: no code is sent there."""
    if url is None:
        print("remote: start `byzflow actor-server` and pass --connect tcp://host:port")
        return
    async with ActorPool(ActorPoolConfig(url)) as pool:
        rows = torch.tensor([[1.0], [2.0], [100.0]])
        median = await pool.run_subtask(SubTask(byzflow.aggregate, ("median", rows)))
        print(f"the median, computed at {url}: {median.item()}")


def main() -> None:
    """Run one demo, or all."""
    demos: dict[str, Any] = {
        "basic": basic,
        "channel": channel,
        "pipeline": pipeline,
        "channel-detail": channel_detail,
        "remote": None,
    }
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--demo", choices=["all", *demos], default="all")
    parser.add_argument("--connect", metavar="URL", help="of an actor server, for the demo `remote`")
    options = parser.parse_args()
    for name in demos if options.demo == "all" else [options.demo]:
        print(f"--- {name}")
        try:
            asyncio.run(remote(options.connect) if name == "remote" else demos[name]())
        except ActorError as error:
            print(error, file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
