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
