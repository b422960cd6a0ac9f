"""What `byzflow doctor` looks at: the interpreter, the packages, the plugins, and one small aggregation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Literal

from byzflow import __version__

REQUIRED = ("torch", "numpy", "pluggy", "networkx", "click", "rich", "msgspec", "cloudpickle")
EXTRAS = {
    "flower": "flwr",
    "lightning": "lightning",
    "ray": "ray",
    "ucx": "ucxx",
    "plots": "matplotlib",
    "net": "cryptography",
}


@dataclass(frozen=True)
class Check:
    """One finding; `absent` is an optional part that is not installed."""

    name: str
    state: Literal["ok", "absent", "broken"]
    detail: str


def checks() -> list[Check]:
    """All findings, in the order in which they matter."""
    return [
        _attempt("byzflow", _own_version),
        _attempt("python", lambda: sys.version.split()[0]),
        *(_attempt(name, lambda name=name: _package(name)) for name in REQUIRED),  # type: ignore[misc]
        _attempt("plugins", _plugins),
        _attempt("aggregation", _aggregation),
        _attempt("kernels", _kernels),
        _attempt("gpu", _gpu),
        *(_extra(extra, package) for extra, package in EXTRAS.items()),
    ]


def connection(url: str, keys: str | None) -> Check:
    """The way to an actor server: there, trusted, of a version and a clock that fit, and how long an answer takes.

    Raises ActorError for what is no address of one, and for keys that cannot be used.
    """
    import asyncio
    import time

    from byzflow.actors.backend import resolve
    from byzflow.actors.hello import SKEW
    from byzflow.errors import ActorError

    if not url.startswith(("tcp://", "ucx://")):
        raise ActorError(f"{url!r} is no address of an actor server; write tcp://host:7000")
    worker = resolve(url, **({} if keys is None else {"keys": keys}))

    async def knock() -> str:
        await worker.start("doctor")
        try:
            began = time.perf_counter()
            await worker.drop(0)  # the least that is answered
            took = time.perf_counter() - began
            if abs(ahead := getattr(worker, "ahead", 0.0)) > SKEW:
                raise ActorError(
                    f"{url} answers, but its clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}: "
                    "let both machines set their clocks by the network (NTP); certificates are valid by the clock"
                )
            return f"{url} answers in {1e3 * took:.1f} ms"
        finally:
            await worker.close()

    return _attempt("connection", lambda: asyncio.run(knock()))


def _attempt(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except Exception as error:
        return Check(name, "broken", f"{type(error).__name__}: {error}")


def _extra(extra: str, package: str) -> Check:
    from importlib.util import find_spec

    if find_spec(package) is None:
        return Check(extra, "absent", f"{package} is not installed: pip install 'byzflow[{extra}]'")
    # the version is enough: importing every framework would take many seconds
    return _attempt(extra, lambda: f"{package} {_version(package)}")


def _version(package: str) -> str:
    for name in (package, f"{package}-cu13", f"{package}-cu12"):
        try:
            return version(name)
        except ModuleNotFoundError:
            continue
    return "of unknown version"


def _package(name: str) -> str:
    import_module(name)
    return _version(name)


def _own_version() -> str:
    found = version("byzflow")
    if found != __version__:
        raise RuntimeError(f"installed as {found}, but the code is {__version__}: install again")
    return found


def _plugins() -> str:
    from byzflow.registry import installed

    entries = installed().entries
    return f"{len({e.plugin for e in entries})} plugins, {len(entries)} operators"


def _aggregation() -> str:
    import torch

    from byzflow.api import aggregate

    rows = [torch.full((8,), float(v)) for v in (1, 1, 1, 1, 1e30)]
    value = aggregate("nnm | trimmed_mean", rows, f=1)
    if not torch.equal(value, torch.ones(8)):
        raise RuntimeError(f"nnm | trimmed_mean of four rows of 1 and one of 1e30 gave {value[0]}")
    return "one Byzantine row of five left out"


def _kernels() -> str:
    from byzflow.engine.kernels import active

    return active()


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none: the CPU is used"
