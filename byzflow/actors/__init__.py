"""Actors: objects and calls on workers, wherever they are.

host       the inside of a worker: objects, calls, mailboxes
backend    the contract of a worker, and who is asked for which URL
thread     workers on threads of this process
ref        an object on a worker
channels   mailboxes that connect the workers of a pool
pool       many workers: lazy, replaced when they die, chosen by what they can do
hub        the links of one party: listening, dialling, who the peers are and what each has cost
tile       some coordinates of n rows on a worker
tiles      operators on rows whose coordinates are on several workers: aggregate_over, hold, spread
conformance  what every backend must pass
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byzflow.actors.backend import Backend, resolve
    from byzflow.actors.channels import PoolChannel
    from byzflow.actors.host import Host, here
    from byzflow.actors.pool import ActorPool, ActorPoolConfig
    from byzflow.actors.ref import ActorRef, spawn
    from byzflow.actors.tile import Tile
    from byzflow.actors.tiles import HeldRows, aggregate_over, hold, spread
    from byzflow.graph.subtask import SubTask

__all__ = [
    "ActorPool",
    "ActorPoolConfig",
    "ActorRef",
    "Backend",
    "HeldRows",
    "Host",
    "PoolChannel",
    "SubTask",
    "Tile",
    "aggregate_over",
    "here",
    "hold",
    "resolve",
    "spawn",
    "spread",
]

# Names are imported when they are first used: `byzflow keys` must not wait for torch.
_HOMES = {
    "actors.backend": ("Backend", "resolve"),
    "actors.channels": ("PoolChannel",),
    "actors.host": ("Host", "here"),
    "actors.pool": ("ActorPool", "ActorPoolConfig"),
    "actors.ref": ("ActorRef", "spawn"),
    "actors.tile": ("Tile",),
    "actors.tiles": ("HeldRows", "aggregate_over", "hold", "spread"),
    "graph.subtask": ("SubTask",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"byzflow.{home}"), name)
    raise AttributeError(f"module 'byzflow.actors' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
