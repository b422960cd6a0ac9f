"""Actors: objects and calls on workers, wherever they are.

host       the inside of a worker: objects, calls, mailboxes
backend    the contract of a worker, and who is asked for which URL
thread     workers on threads of this process
ref        an object on a worker
channels   mailboxes that connect the workers of a pool
pool       many workers: lazy, replaced when they die, chosen by what they can do
hub        the links of one party: listening, dialling, who the peers are and what each has cost
conformance  what every backend must pass
"""

from byzflow.actors.backend import Backend, resolve
from byzflow.actors.channels import PoolChannel
from byzflow.actors.host import Host, here
from byzflow.actors.pool import ActorPool, ActorPoolConfig
from byzflow.actors.ref import ActorRef, spawn
from byzflow.graph.subtask import SubTask

__all__ = [
    "ActorPool",
    "ActorPoolConfig",
    "ActorRef",
    "Backend",
    "Host",
    "PoolChannel",
    "SubTask",
    "here",
    "resolve",
    "spawn",
]
