"""Actors: objects and calls on workers, wherever they are.

host          the inside of a worker: objects, calls, mailboxes
backend       the contract of a worker, and who is asked for which URL; conformance: what each must pass
ref           an object on a worker
pool          many workers: lazy, replaced when they die, chosen by what they can do
worker, queue one of them; who waits for one, and who gets it
channels      mailboxes that connect the workers of a pool
tile          some coordinates of n rows on a worker
tiles         operators on rows whose coordinates are on several workers: aggregate_over, hold, spread
parts         what those workers send: checked, and put together

thread, cuda  workers on threads of this process; one with a GPU of its own
process       a worker in a process of its own; child: the other end of it
interpreter   how such a process begins and ends
objects       any object as bytes, between processes of one owner
arena         memory that two processes share
memory_link   a link through it

link          a connection that passes frames; wire: frames as bytes, for peers that are not trusted
rpc, remote   requests and answers over a link, and the worker at its other end
address       where a party listens, and whether the way there needs keys
keys, hello   who is who, and how a link begins
socket_link   a link over a socket, encrypted or plain; buffers: memory that arrays are received into
door, hub     how a connection gets in, and the links of one party
peer          what one peer costs
tcp, kept     workers on other machines, and those that outlive their link for a while

ucx           workers over a fast network that is trusted
ucx_link      a link over it
ucx_server    the side that never loads UCX; ucx_child: the process of one worker
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byzflow.actors.backend import Backend, resolve
    from byzflow.actors.channels import PoolChannel
    from byzflow.actors.host import Host, here
    from byzflow.actors.pool import ActorPool
    from byzflow.actors.ref import ActorRef, spawn
    from byzflow.actors.tile import Tile
    from byzflow.actors.tiles import HeldRows, aggregate_over, hold, spread
    from byzflow.actors.worker import ActorPoolConfig
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
    "actors.pool": ("ActorPool",),
    "actors.ref": ("ActorRef", "spawn"),
    "actors.tile": ("Tile",),
    "actors.tiles": ("HeldRows", "aggregate_over", "hold", "spread"),
    "actors.worker": ("ActorPoolConfig",),
    "graph.subtask": ("SubTask",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"byzflow.{home}"), name)
    raise AttributeError(f"module 'byzflow.actors' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
