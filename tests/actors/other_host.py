"""What a program does with workers on another host: `python -m tests.actors.other_host WHAT URL KEYS`, answers JSON.

It may use nothing of this host but its network and the keys: see tests/namespaces.py.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import torch

import byzflow
from byzflow.actors import ActorPool, ActorPoolConfig, Backend, hold, resolve
from byzflow.actors.remote import LinkBackend
from byzflow.errors import WorkerDied
from byzflow.graph import Message

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
SPECS = ("median", "nnm(f=2) | trimmed_mean(f=2)", "krum(f=2)", "geometric_median", "alie(f=2)")


async def back_and_forth(worker: Backend) -> dict[str, Any]:
    """Tensors of every kind to the other host and back."""
    wrong = []
    for dtype in DTYPES:
        for shape in ((), (0,), (3,), (4, 5), (1000, 1001)):
            sent = torch.randn(shape).mul(50).to(dtype)
            await worker.deliver(Message("tensor", sent, "here"))
            got = (await worker.receive("tensor", 20)).payload
            if (got.dtype, got.shape) != (sent.dtype, sent.shape) or not torch.equal(got, sent):
                wrong.append(f"{dtype} {shape}")
    rows = torch.randn(9, 1000)
    there = await worker.call(byzflow.aggregate, ("median", rows))
    return {"wrong": wrong, "aggregate": torch.equal(there, byzflow.aggregate("median", rows))}


async def large_then_small(worker: Backend) -> dict[str, Any]:
    """80 MB, and two messages on its heels."""
    start = time.perf_counter()
    sent = [torch.randn(20_000_000), torch.tensor(1), torch.tensor(2)]
    await asyncio.gather(*(worker.deliver(Message("tensor", each, "here")) for each in sent))
    seconds = time.perf_counter() - start
    got = [(await worker.receive("tensor", 60)).payload for _ in sent]
    return {"seconds": seconds, "came": [torch.equal(a, b) for a, b in zip(got, sent, strict=True)]}


async def tiles(url: str, keys: str) -> dict[str, Any]:
    """Two thirds of the coordinates are held by the other host, the others by a process of this one."""
    x = torch.randn(9, 300_000)
    x[4, 250_000] = torch.nan  # there alone
    gaps, sent, came = {}, {}, {}
    remote = ActorPoolConfig(url, 1, name="there", options={"keys": keys})
    async with ActorPool([ActorPoolConfig("process:", 1, name="here"), remote]) as pool:
        held = await hold(pool, {"here-0": (x[:, :100_000],), "there-0": (x[:, 100_000:],)})
        backend = pool.workers["there-0"].backend
        assert isinstance(backend, LinkBackend)
        assert backend._rpc is not None
        stats = backend._rpc.link.stats
        for spec in SPECS:
            before = (stats.bytes_out, stats.bytes_in)
            found = await held.explain(spec)
            sent[spec], came[spec] = stats.bytes_out - before[0], stats.bytes_in - before[1]
            expected = byzflow.parse(spec).explain(x)
            assert found.rejected == expected.rejected == (4,)
            gaps[spec] = float((found.value - expected.value).abs().max())
    return {"gaps": gaps, "sent": sent, "came": came}


async def lost(url: str, keys: str) -> dict[str, Any]:
    """The other host falls silent while both hold tiles; this one says when it may."""
    x = torch.randn(9, 1000)
    remote = ActorPoolConfig(url, 1, name="there", options={"keys": keys})
    async with ActorPool([ActorPoolConfig("thread:", 1, name="here"), remote], max_restarts=0) as pool:
        held = await hold(pool, {"here-0": (x[:, :500],), "there-0": (x[:, 500:],)})
        await held.aggregate("median")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        start = time.perf_counter()
        try:
            await held.aggregate("krum(f=2)")
        except WorkerDied as death:
            return {"seconds": time.perf_counter() - start, "error": str(death)}
    return {"error": ""}


async def main(what: str, url: str, keys: str) -> dict[str, Any]:
    """One of the above."""
    if what in ("tiles", "lost"):
        return await (tiles if what == "tiles" else lost)(url, keys)
    worker = resolve(url, keys=keys)
    await worker.start("guest")
    try:
        return await (back_and_forth if what == "back_and_forth" else large_then_small)(worker)
    finally:
        await worker.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
