"""Arrays between two processes: byzflow's backends and links beside other libraries.

    python -m benchmarks.transport                      # every contestant, 4 KB, 1 MB and 40 MB, a minute
    python -m benchmarks.transport --json FILE --rounds 5 --only "byzflow tcp:, TLS" "gRPC stream, mTLS"

An echo is one float32 array sent to another process over loopback and sent back whole; the time is that of the round
trip, from the call to the array in the caller's hands. GB/s counts its bytes both ways: 80 MB for an array of 40 MB.
CPU seconds are those of both processes, a GB by the same count. The contestants take turns in a new order each round,
each after two calls that do not count; Ray's processes would take time from the others, so it comes at the end. Given
are the medians, and half of the distance of the quartiles. Who is not installed is listed as absent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import echo_ours, echo_peers, machine
from benchmarks.echo import Contestant, End, cpu_seconds, new_keys

SIZES = {"4 KB": 4096, "1 MB": 1 << 20, "40 MB": 40_000_000}  # bytes
CALLS = {"4 KB": 20, "1 MB": 5, "40 MB": 3}  # of a contestant in its turn
WARM = 2  # calls before these: memory has to be found, on both sides
START = 60.0  # seconds
CONTESTANTS: dict[str, Contestant] = {each.name: each for each in echo_ours.contestants() + echo_peers.contestants()}
LAST = ("byzflow ray:",)
GOALS = (  # of 40 MB: who, how many times as fast, as whom
    ("byzflow tcp:, link alone, TLS", 4.6, "pyzmq, CURVE"),
    ("byzflow tcp:, link alone, TLS", 1.6, "gRPC stream, mTLS"),
    ("byzflow tcp:, link alone, plain", 14.0, "ByzPy's wire"),
)


async def measure(names: list[str], rounds: int) -> dict[str, Any]:
    """Contestant -> its samples by size, in seconds of wall clock and of CPU, or why there are none."""
    found: dict[str, Any] = {}
    ends: dict[str, End] = {}
    with tempfile.TemporaryDirectory() as folder:
        new_keys(Path(folder))
        async with AsyncExitStack() as stack:
            for name in names:
                if why := CONTESTANTS[name].missing():
                    found[name] = {"absent": why}
                    continue
                async with asyncio.timeout(START):
                    ends[name] = await stack.enter_async_context(CONTESTANTS[name].connect(Path(folder)))
                found[name] = {size: {"wall": [], "cpu": []} for size in SIZES}
            order, shuffle = list(ends), random.Random(0).shuffle
            for _ in range(rounds):
                shuffle(order)
                for name in order:
                    for size in SIZES:
                        await _turn(ends[name], size, found[name][size])
    return found


async def _turn(end: End, size: str, samples: dict[str, list[float]]) -> None:
    array = np.arange(SIZES[size] // 4, dtype=np.float32)
    sent: Any = torch.from_numpy(array) if end.tensors else array
    for _ in range(WARM):
        answer = np.asarray(await end.echo(sent))
        if not np.array_equal(answer, array):
            raise RuntimeError("what came back is not what was sent")
        del answer
    for _ in range(CALLS[size]):
        cpu, start = cpu_seconds(end.pids), time.perf_counter()
        await end.echo(sent)
        samples["wall"].append(time.perf_counter() - start)
        samples["cpu"].append(cpu_seconds(end.pids) - cpu)


def figures(samples: dict[str, Any]) -> dict[str, Any]:
    """Median and half the distance of the quartiles in microseconds, GB/s, and CPU seconds a GB, by size."""
    if "absent" in samples:
        return samples
    found = {}
    for size, each in samples.items():
        middle, gigabytes = statistics.median(each["wall"]), 2 * SIZES[size] / 1e9
        low, _, high = statistics.quantiles(each["wall"]) if len(each["wall"]) > 1 else (middle,) * 3
        found[size] = {
            "us": 1e6 * middle,
            "spread_us": 1e6 * (high - low) / 2,
            "gb_s": gigabytes / middle,
            "cpu_s_gb": statistics.mean(each["cpu"]) / gigabytes,
        }
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row for each contestant."""
    lines = [
        "| | protection | 4 KB, µs | 1 MB, GB/s | 40 MB, GB/s | 40 MB, ms | CPU-s/GB |",
        "| --- | --- |" + " ---: |" * 5,
    ]
    for name, x in results.items():
        line = f"| {name} | {CONTESTANTS[name].protection or '-'} | "
        if "absent" in x:
            lines.append(f"{line}absent: {x['absent']} | | | | |")
            continue
        small, middle, large = x["4 KB"], x["1 MB"], x["40 MB"]
        copied = name != "byzflow thread:"
        line += f"{small['us']:.0f} ± {small['spread_us']:.0f} | "
        line += f"{middle['gb_s']:.2f} | {large['gb_s']:.2f} | " if copied else "not copied | not copied | "
        line += f"{large['us'] / 1e3:.1f} ± {large['spread_us'] / 1e3:.1f} | "
        lines.append(line + (f"{large['cpu_s_gb']:.2f} |" if copied else "- |"))
    return "\n".join(lines)


def goals(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: the ratios at 40 MB that byzflow's links are to reach."""
    lines = ["| 40 MB | goal | measured |", "| --- | ---: | ---: |"]
    for ours, bound, other in GOALS:
        if all("40 MB" in results.get(name, {}) for name in (ours, other)):
            ratio = results[ours]["40 MB"]["gb_s"] / results[other]["40 MB"]["gb_s"]
            lines.append(f"| {ours}, to {other} | {bound:g}x | {ratio:.1f}x |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="turns of each contestant")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CONTESTANTS, help="these contestants")
    parser.add_argument("--json", type=Path, help="write the figures and all samples to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    torch.set_num_threads(1)
    about = machine.describe(1)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # ByzPy's shared memory is given back by its receiver alone
    names = arguments.only or list(CONTESTANTS)
    samples: dict[str, Any] = {}
    for group in ([each for each in names if each not in LAST], [each for each in names if each in LAST]):
        samples |= asyncio.run(measure(group, arguments.rounds)) if group else {}
    results = {name: figures(each) for name, each in samples.items()}
    print(table(results), goals(results), sep="\n\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "results": results, "samples": samples}))


if __name__ == "__main__":
    main()
