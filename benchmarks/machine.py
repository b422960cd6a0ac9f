"""What it ran on: processor, memory, versions, and the path that byzflow's kernels take."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from tests.operators import peers


def describe(threads: int) -> dict[str, Any]:
    """The machine and the versions of everything that takes part."""
    from byzflow.engine import kernels

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "last_level_cache": _read("/sys/devices/system/cpu/cpu0/cache/index3/size"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])} {platform.machine()}",
        "python": platform.python_version(),
        "kernels": kernels.active(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("byzflow", "torch", "numpy", "scipy", "flwr"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    there = {each.name.lower(): each.version for each in distributions(path=[str(peers.FOLDER)])}
    return found | {name: there.get(name, "absent") for name in peers.PINS}


def _processor() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
