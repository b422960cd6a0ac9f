"""What each rank of `benchmarks.ddp` runs: `torchrun -m benchmarks.ddp_rank FILE D ROUNDS`."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from byzflow_lightning.robust_reducer import RobustReducer

BYTES_SENT = 200  # offset of tcpi_bytes_sent in the kernel's struct tcp_info
LAYERS = 10
PLAIN = "DDP all_reduce"
CONTESTANTS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    "mean, sharded": {"operator": "mean"},
    "krum, sharded": {"operator": "krum(f=0, neighbors=n-f-1, strict=False)"},
    "median, sharded": {"operator": "median"},
    "median, sharded, with weights": {"operator": "median", "weigh": True},
    "krum, overlap": {"operator": "krum(f=0, neighbors=n-f-1, strict=False)", "options": {"overlap": True}},
    "median, overlap": {"operator": "median", "options": {"overlap": True}},
    "krum, naive all-gather": {"operator": "krum(f=0, neighbors=n-f-1, strict=False)", "options": {"trust": "gather"}},
    "median, naive all-gather": {"operator": "median", "options": {"trust": "gather"}},
}


class Layers(nn.Module):
    """d parameters, and a loss whose gradient is noise of this rank's own."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList([torch.zeros(len(part)) for part in torch.arange(d).tensor_split(LAYERS)])
        self.noise = [torch.randn(len(p)) for p in self.layers]

    def forward(self) -> Tensor:
        return torch.stack([p @ noise for p, noise in zip(self.layers, self.noise, strict=True)]).sum()


def build(d: int, how: dict[str, Any] | None) -> Callable[[], None]:
    """A function that makes one step up to the optimiser's."""
    model = DistributedDataParallel(Layers(d))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reducer = None if how is None else RobustReducer(how["operator"], **how.get("options", {}))
    if reducer is not None and how is not None:
        reducer.weigh = how.get("weigh", False)
        reducer.attach(model)

    def step() -> None:
        model().backward()
        if reducer is not None:
            reducer.reduce(optimizer)

    return step


def timed(step: Callable[[], None]) -> float:
    """Seconds until the slowest rank is through."""
    dist.barrier()
    start = time.perf_counter()
    step()
    dist.barrier()
    return time.perf_counter() - start


def sent() -> int:
    """Bytes that this process has sent over all its TCP connections."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(entry).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as each:
                    if each.type == socket.SOCK_STREAM and each.family in (socket.AF_INET, socket.AF_INET6):
                        info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                        total += struct.unpack_from("Q", info, BYTES_SENT)[0]
        except OSError:  # closed meanwhile, or no TCP
            continue
    return total


def resident(peak: bool) -> int:
    """Bytes of this process in memory, now or at the most since the last reset."""
    name = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def cost(d: int, how: dict[str, Any] | None) -> tuple[int, int]:
    """(bytes sent in one step, bytes that the model and two steps of it take at the peak), on this rank."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident(peak=False)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    step = build(d, how)
    step()
    step()
    peak = resident(peak=True) - before
    dist.barrier()
    first = sent()
    step()
    return sent() - first, peak


def main() -> None:
    """Costs first, one contestant at a time; then rounds in which all take turns."""
    file, d, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    cost(min(d, 1000), None)  # what is started once
    costs = {name: cost(d, how) for name, how in CONTESTANTS.items()}
    steps = {name: build(d, how) for name, how in CONTESTANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)  # the same on every rank
    for round in range(rounds + 2):
        for name in order.sample(list(steps), len(steps)):
            seconds = timed(steps[name])
            if round >= 2:  # DDP rebuilds its buckets after the first step
                times[name].append(seconds)
    found = {}
    for name in CONTESTANTS:
        ratios = [mine / plain for mine, plain in zip(times[name], times[PLAIN], strict=True)]
        found[name] = {
            "seconds": statistics.median(times[name]),
            "time_ratio": statistics.median(ratios),
            "time_ratios": ratios,
            "bytes": costs[name][0],
            "bytes_ratio": costs[name][0] / costs[PLAIN][0],
            "memory": costs[name][1],
            "memory_ratio": costs[name][1] / costs[PLAIN][1],
        }
    if dist.get_rank() == 0:
        file.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
