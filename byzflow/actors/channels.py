"""Mailboxes that connect the workers of a pool."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from byzflow.errors import ActorError
from byzflow.graph.messages import Message

if TYPE_CHECKING:
    from byzflow.actors.backend import Backend
    from byzflow.actors.pool import ActorPool


class PoolChannel:
    """A named channel, seen from the pool's owner. Workers use `here().send` and `here().receive`.

    A mailbox is read by its worker, and by the pool's owner in its name; by nobody else.
    """

    def __init__(self, pool: ActorPool, name: str) -> None:
        self.pool, self.name = pool, name

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of those it connects."""
        return tuple(self.pool.workers)

    async def send(self, sender: str, recipient: str, payload: Any) -> None:
        """One message. Raises ActorError for a name that is not in the pool, MailboxFull."""
        self._check(sender)
        await self.pool.deliver(recipient, Message(self.name, payload, sender))

    async def broadcast(self, sender: str, payload: Any) -> dict[str, Exception]:
        """One message to all others; the errors of those that it did not reach, by name."""
        self._check(sender)
        others = [name for name in self.pool.workers if name != sender]
        outcomes = await asyncio.gather(*(self.send(sender, each, payload) for each in others), return_exceptions=True)
        return {name: error for name, error in zip(others, outcomes, strict=True) if isinstance(error, Exception)}

    async def recv(self, worker: str, *, timeout: float | None = None) -> Any:
        """The payload of a worker's next message. Raises MessageTimeout: a payload of None is not one."""
        return (await self.receive(worker, timeout=timeout)).payload

    async def receive(self, worker: str, *, timeout: float | None = None) -> Message:
        """As `recv`, with the sender."""
        backend = self._check(worker)
        return await backend.receive(self.name, timeout)

    def _check(self, name: str) -> Backend:
        worker = self.pool.workers.get(name)
        if worker is None or worker.backend is None:
            raise ActorError(f"no worker {name!r} on channel {self.name!r}; it connects: {', '.join(self.workers)}")
        return worker.backend
