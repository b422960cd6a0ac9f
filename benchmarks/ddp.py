"""Robust data-parallel reduction beside DDP's own: step time, bytes on the wire and peak memory.

    python -m benchmarks.ddp                    # d = 1e6 and 1e7, 2 and 4 ranks on this machine, gloo
    python -m benchmarks.ddp --json FILE --d 1000000 --ranks 2 --rounds 5

A step is a forward pass that costs next to nothing, the backward pass with whatever is reduced in it, and the
reduction after it. The contestants take turns within one run; a ratio is the median over the rounds of a step's time
over that of plain DDP in the same round. Every rank has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COLUMNS = ("step ms", "time", "MB sent", "bytes", "extra MB", "memory")


def measure(ranks: int, d: int, rounds: int, limit: float) -> dict[str, Any]:
    """One run of `benchmarks.ddp_rank` under torchrun: contestant -> what rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "out.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", "benchmarks.ddp_rank", str(file), str(d), str(rounds)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=limit, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row for each contestant of each run."""
    lines = [f"| ranks | d | reduction | {' | '.join(COLUMNS)} |", "|" + " ---: |" * 2 + " --- |" + " ---: |" * 6]
    for run in results:
        for name, x in run["contestants"].items():
            lines.append(
                f"| {run['ranks']} | {run['d']:.0e} | {name} | {x['seconds'] * 1e3:.1f} | {x['time_ratio']:.2f} | "
                f"{x['bytes'] / 1e6:.1f} | {x['bytes_ratio']:.3f} | {x['memory'] / 1e6:.0f} | {x['memory_ratio']:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure every combination, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, nargs="+", default=[1_000_000, 10_000_000], help="parameters of the model")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="processes")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each contestant")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one combination")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if min([*arguments.d, *arguments.ranks, arguments.rounds]) < 1:
        parser.error("--d, --ranks and --rounds must be at least 1")
    results = []
    for ranks in arguments.ranks:
        for d in arguments.d:
            found = measure(ranks, d, arguments.rounds, arguments.limit)
            results.append({"ranks": ranks, "d": d, "contestants": found})
    print(table(results))
    if arguments.json:
        machine = {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
