"""One contestant on one workload, ready to run: byzflow, a peer, one of byzflow's passes, or a yardstick."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import flower_step, ours
from benchmarks.peers import PEERS, Peer, peers_of
from benchmarks.workloads import Workload, make_rows

TOLERANCE = 1e-4  # relative: float32 sums in another order stay far below, another definition far above


class Case(NamedTuple):
    """A function and what it is called with."""

    run: Callable[[Any], Any]
    inputs: Any
    threads: int | None = None
    """Set before each call, if given."""
    name: str = ""


def contestants(workload: Workload, absent: dict[str, str]) -> list[str]:
    """Whose results are compared: byzflow, then the peers that are installed."""
    return ["byzflow", *(library for library in peers_of(workload) if library not in absent)]


def build(workload: Workload, contestant: str, rows: list[Tensor]) -> Case:
    """The contestant's function and its inputs, made from the rows."""
    if workload.group == "flower":
        return Case(*flower_step.build(workload, contestant, rows))
    if contestant == "byzflow":
        return Case(ours.call(workload, rows), rows)
    peer = peer_for(workload, contestant)
    return Case(peer.build(workload), peer.inputs(rows))


def describe(workload: Workload) -> dict[str, Any]:
    """What passes the rule needs, and its spec in full."""
    return {"kind": ours.kind(workload), "operator": str(ours.operator(workload))}


def peer_for(workload: Workload, library: str) -> Peer:
    """How the library is called for this workload."""
    return PEERS[library][workload.name]


def yardsticks(workload: Workload, rows: list[Tensor]) -> dict[str, Case]:
    """Reading the rows once, byzflow's passes, and a matrix product where growth by n is looked at."""
    way, read = fastest_read(rows)
    found = {"read": Case(read, rows, name=way)}
    found |= {name: Case(run, rows) for name, run in ours.passes(workload, rows).items()}
    if workload.group == "growth-n" and "gram" in found:
        found |= {name: Case(run, rows) for name, run in ours.products(rows).items()}
    return found


def fastest_read(rows: list[Tensor]) -> tuple[str, Callable[[Any], Any]]:
    """The way to read all rows once that takes least time here, and its name."""
    best: dict[str, float] = {}
    runs = ours.reads()
    for _ in range(5):
        for name, run in runs.items():
            start = time.perf_counter()
            run(rows)
            best[name] = min(best.get(name, np.inf), time.perf_counter() - start)
    name = min(best, key=lambda each: best[each])
    return name, runs[name]


def small(workload: Workload) -> Workload:
    """The same on few coordinates: for a first call that loads what is loaded once."""
    from dataclasses import replace

    return replace(workload, d=min(workload.d, 512))


def flat(result: Any) -> np.ndarray[Any, Any]:
    """A result, one vector or several, as float64 (m, d)."""
    if isinstance(result, list | tuple):
        return np.stack([flat(each).reshape(-1) for each in result])
    array = result.detach().numpy() if isinstance(result, Tensor) else np.asarray(result)
    array = array.astype(np.float64)
    return array.reshape(1, -1) if array.ndim == 1 else array


def size(result: Any) -> int:
    """Bytes of a result: what nobody can do without."""
    if isinstance(result, list | tuple):
        return sum(size(each) for each in result)
    return int(result.numel() * result.element_size()) if isinstance(result, Tensor) else int(np.asarray(result).nbytes)


def difference(result: Any, wanted: Any) -> float:
    """Norm of the difference of two results, relative to the second; inf where one is not finite and the other is."""
    a, b = flat(result), flat(wanted)
    if a.shape != b.shape:
        return float("inf")
    if not np.isfinite(b).all():
        return 0.0 if np.array_equal(a, b) else float("inf")
    gap = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
    return gap if np.isfinite(gap) else float("inf")


def rows_of(workload: Workload) -> list[Tensor]:
    """The workload's rows; torch draws nothing else from its global generator before this."""
    torch.manual_seed(0)  # some peers draw from it
    return make_rows(workload)
