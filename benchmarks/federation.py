"""`python -m benchmarks.federation`: what federations cost that compute nothing.

virtual nodes   10 000 made, in a process of its own: seconds, and growth of its resident memory
rounds          messages/s of 100 nodes that send a constant vector, in rounds of a federation under the mean
network         the same messages without rounds or rules: sent, checked at both ends, taken
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor

from byzflow.federation.federation import Federation
from byzflow.federation.nodes import HonestNode
from byzflow.federation.virtual_node import VirtualNode
from byzflow.gossip.network import LocalNetwork
from byzflow.gossip.topology import Topology, topology

N, VIRTUAL = 100, 10_000
SHAPES = ("star", "ring", "mesh")
SIZES = (10, 10_000)
REPEATS = 5
SHORT = 0.5  # seconds that a repeat takes at least


class Constant(HonestNode):
    """Sends the same vector in each round, and learns nothing."""

    def __init__(self, d: int) -> None:
        self.x = torch.zeros(d)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        return self.x, self.x

    def honest_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return self.x

    def honest_gradient_for_next_batch(self) -> Tensor:
        return self.x

    def half_step(self) -> Tensor:
        return self.x

    def apply_server_gradient(self, gradient: Tensor) -> None:
        pass

    def adopt(self, model: Tensor) -> None:
        pass


def virtual() -> dict[str, float]:
    """In this process: make them."""
    before = resident()
    began = time.perf_counter()
    nodes = [VirtualNode(Constant, f"client_{k}", "train", args=(10,)) for k in range(VIRTUAL)]
    seconds = time.perf_counter() - began
    return {"nodes": len(nodes), "seconds": seconds, "mebibytes": (resident() - before) / 2**20}


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def virtual_apart() -> dict[str, float]:
    """In a process of its own."""
    asked = [sys.executable, "-m", "benchmarks.federation", "--virtual"]
    found: dict[str, float] = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    return found


async def rounds(shape: str, d: int, count: int) -> tuple[int, float]:
    """Messages delivered and seconds of so many rounds, after one that is not counted."""
    nodes = [Constant(d) for _ in range(N)]
    async with Federation(nodes, shape, "mean", evaluate_every=0, compare_digests=False) as federation:
        await federation.round()
        before, began = federation.network.traffic.delivered, time.perf_counter()
        await federation.run(count)
        return federation.network.traffic.delivered - before, time.perf_counter() - began


async def network(shape: str, d: int, count: int) -> tuple[int, float]:
    """Messages taken and seconds: each node sends to all its neighbours, and then takes what came."""
    graph = topology(shape, N)
    assert isinstance(graph, Topology)
    net, x = LocalNetwork(graph), torch.zeros(d)
    began = time.perf_counter()
    for _ in range(count):
        for node in graph.nodes:
            await net.send(node, graph.neighbours(node), "x", x, None)
        for node in graph.nodes:
            for _ in graph.in_neighbours(node):
                await net.mailbox(node).take("x")
    return net.traffic.delivered, time.perf_counter() - began


def rates(run: Callable[[int], tuple[int, float]]) -> dict[str, float]:
    """Messages/s: median, least and most of the repeats, after a run that finds how long one is."""
    count = 1
    while run(count)[1] < SHORT and count < 4096:
        count *= 2
    found = sorted(messages / seconds for messages, seconds in (run(count) for _ in range(REPEATS)))
    return {"median": median(found), "least": found[0], "most": found[-1], "rounds": count}


def measure() -> list[dict[str, Any]]:
    """All rates."""
    torch.set_num_threads(1)
    ways = {"rounds": rounds, "network": network}
    return [
        {"way": name, "shape": shape, "d": d}
        | rates(lambda count, way=way, shape=shape, d=d: asyncio.run(way(shape, d, count)))  # type: ignore[misc]
        for name, way in ways.items()
        for shape in SHAPES
        for d in SIZES
    ]


def table(made: dict[str, float], found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        f"{made['nodes']:,.0f} virtual nodes: {made['seconds']:.3f} s, {made['mebibytes']:.1f} MiB.",
        "",
        "| messages/s, 100 nodes | star | ring | mesh |",
        "|---|---|---|---|",
    ]
    for way in ("rounds", "network"):
        for d in SIZES:
            row = {each["shape"]: each for each in found if (each["way"], each["d"]) == (way, d)}
            cells = (f"{row[s]['median']:,.0f} ({row[s]['least']:,.0f} to {row[s]['most']:,.0f})" for s in SHAPES)
            lines.append(f"| {way}, d = {d:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="All figures as one JSON object, with the machine.")
@click.option("--virtual", "only_virtual", is_flag=True, help="Only the virtual nodes, in this process; JSON.")
def main(as_json: bool, only_virtual: bool) -> None:
    """Measure and print."""
    if only_virtual:
        click.echo(json.dumps(virtual()))
        return
    made, found = virtual_apart(), measure()
    if as_json:
        from benchmarks.machine import describe

        click.echo(json.dumps({"machine": describe(1), "virtual": made, "rates": found}, indent=1))
    else:
        click.echo(table(made, found))


if __name__ == "__main__":
    main()
