"""The contract of a backend: one worker, somewhere, on which objects live and calls run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Self

from byzflow.actors.host import Route
from byzflow.errors import ActorError, did_you_mean
from byzflow.graph.messages import Message

# Imported when first used; what plugins offer is added to these by the hook `byzflow_backends`.
BUILT_IN = {
    "thread": "byzflow.actors.thread:ThreadBackend",
    "process": "byzflow.actors.process:ProcessBackend",
    "cuda": "byzflow.actors.cuda:CudaBackend",
    "tcp": "byzflow.actors.tcp:TcpBackend",
    "ucx": "byzflow.actors.ucx:UcxBackend",
}


class Backend(ABC):
    """One worker. A backend is made from a URL and options, started once, and closed once.

    `check_backend` of `byzflow.testing` is the contract in full; a third party's backend passes it too.
    """

    scheme: ClassVar[str]
    """What its URLs begin with."""
    capabilities: frozenset[str] = frozenset({"cpu"})
    """What work it is fit for, unless a pool's configuration says otherwise."""
    trusted: ClassVar[bool] = True
    """If code may be sent: functions as objects. Else only names that are registered on the other side."""

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A worker for this URL. Raises ActorError for one that does not read."""

    @abstractmethod
    async def start(self, name: str, route: Route | None = None) -> None:
        """Bring the worker up; `route` carries what it sends to others. Raises ActorError if it does not come."""

    @abstractmethod
    async def call(self, fn: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """fn(*args, **kwargs) there. Raises what it raises; WorkerDied if the worker ends before it answers."""

    @abstractmethod
    async def create(self, cls: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, list[str]]:
        """A new object there: its number and its public methods."""

    @abstractmethod
    async def invoke(self, number: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A method of an object there."""

    @abstractmethod
    async def drop(self, number: int) -> None:
        """Forget an object there; no error if it or the worker is gone."""

    @abstractmethod
    async def deliver(self, message: Message) -> None:
        """Put a message into the worker's mailbox."""

    @abstractmethod
    async def receive(self, channel: str, timeout: float | None = None) -> Message:
        """Take the worker's next message on a channel, as its owner. Raises MessageTimeout."""

    @abstractmethod
    async def close(self) -> None:
        """End the worker and all that it holds; calls in flight raise WorkerDied. May be called twice."""


def resolve(backend: str | Backend | Callable[[], Backend], **options: Any) -> Backend:
    """A new worker for a URL such as "thread:" or "tcp://host:7000"; the colon may be left out of "thread:".

    Raises ActorError for a scheme that nobody registered, with a suggestion.
    """
    if isinstance(backend, Backend):
        return backend
    if not isinstance(backend, str):
        return backend()
    url = backend if ":" in backend else f"{backend}:"
    scheme = url.partition(":")[0]
    if scheme in BUILT_IN:
        module, _, name = BUILT_IN[scheme].partition(":")
        kind: type[Backend] = getattr(import_module(module), name)
        return kind.from_url(url, **options)
    from byzflow.registry import installed

    plugged = installed().backends
    if scheme not in plugged:
        raise ActorError(f"no backend for {backend!r}; {did_you_mean(scheme, {*BUILT_IN, *plugged})}")
    return plugged[scheme].from_url(url, **options)
