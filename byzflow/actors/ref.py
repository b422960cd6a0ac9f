"""An object on a worker, used as if it were here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self

from byzflow.actors.backend import Backend, resolve
from byzflow.errors import ActorError, did_you_mean


class ActorRef:
    """A handle: `await ref.method(...)` runs there. As a context manager it ends what `spawn` began.

    An attribute that is no public method fails at once, not at the call.
    """

    def __init__(self, backend: Backend, number: int, kind: str, methods: list[str], owns: bool) -> None:
        """`owns`: the worker was started for this object, and ends with it."""
        self._backend, self._number, self._kind, self._methods, self._owns = backend, number, kind, methods, owns

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name.startswith("_"):  # of a copy that is being made, which has nothing yet
            raise AttributeError(name)
        if name not in self._methods:
            raise AttributeError(f"{self._kind} has no method {name!r}; {did_you_mean(name, self._methods)}")

        async def method(*args: Any, **kwargs: Any) -> Any:
            return await self._backend.invoke(self._number, name, args, kwargs)

        method.__name__ = name
        return method

    def __repr__(self) -> str:
        return f"<{self._kind} on a {self._backend.scheme} worker>"

    async def aclose(self) -> None:
        """Forget the object, and end its worker if it was started for it. May be called twice."""
        await (self._backend.close() if self._owns else self._backend.drop(self._number))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()


async def answers(ref: ActorRef) -> None:
    """Returns when the object's worker gives a sign of life. Raises WorkerDied if it never will.

    On a worker that takes code, at once, whatever the object is at; else as a call of the object's own `ping`, where it
    has one, after those before it.
    """
    if ref._backend.trusted:
        await ref._backend.call(_pong)
    elif "ping" in ref._methods:
        await ref.ping()


async def _pong() -> str:
    """A coroutine: these run beside what occupies a worker's thread."""
    return "pong"


async def spawn(cls: Any, *args: Any, backend: str | Backend = "thread:", **kwargs: Any) -> ActorRef:
    """An object of `cls`, made of these arguments, on a worker of its own or on a started one.

        async with await spawn(Counter, 5, backend="process:") as counter:
            await counter.add(2)

    Raises ActorError where no worker comes up, for a class without public methods, and what making the object raises.
    """
    worker = resolve(backend)
    owns = worker is not backend
    kind = getattr(cls, "__name__", str(cls))
    try:
        if owns:
            await worker.start(kind)
        number, methods = await worker.create(cls, args, kwargs)
        if not methods:
            await worker.drop(number)
            raise ActorError(f"{kind} has no public method, so nothing could be done with it")
    except BaseException:
        if owns:
            await worker.close()
        raise
    return ActorRef(worker, number, kind, methods, owns)
