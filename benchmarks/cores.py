"""`python -m benchmarks.cores`: do two cores do twice the work of one? Else no kernel can gain by a second thread.

The Gram pass over rows that fit into the cache, by one process on each core alone, then by both at once.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

TURNS = 200
TIMEOUT = 60.0  # seconds


def work(core: int, ready: Any, results: Any) -> None:
    """Seconds of a number of Gram passes on a core."""
    os.sched_setaffinity(0, {core})
    import torch

    from byzflow.engine.passes import gram_pass
    from byzflow.rows import Rows

    torch.set_num_threads(1)
    rows = Rows.of(list(torch.ones(32, 1 << 16)))
    gram_pass(rows, [])
    ready.wait(TIMEOUT)
    start = time.perf_counter()
    for _ in range(TURNS):
        gram_pass(rows, [])
    results.put(time.perf_counter() - start)


def main() -> None:
    """The command."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    context = multiprocessing.get_context("spawn")
    for chosen in (*([core] for core in cores), cores):
        ready, results = context.Barrier(len(chosen)), context.Queue()
        processes = [context.Process(target=work, args=(core, ready, results)) for core in chosen]
        for process in processes:
            process.start()
        took = [results.get(timeout=TIMEOUT) for _ in processes]
        print(f"cores {chosen}: " + ", ".join(f"{seconds:.2f} s" for seconds in sorted(took)))
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
