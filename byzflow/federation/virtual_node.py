"""A node that is only described: it is made when it is first needed, here or on a worker."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from byzflow.actors.backend import Backend, resolve
from byzflow.actors.ref import ActorRef, spawn
from byzflow.federation.workers import Workers
from byzflow.gossip.effects import NodeId
from byzflow.gossip.performer import ask

INLINE = "inline"


class VirtualNode:
    """A node to be. Thousands cost little more than their names.

        VirtualNode(MyNode, "a", args=(model,), backend="process:")
        VirtualNode(lambda: LearnerNode(make_model("mlp", shape, 10), data), 3, pool=Workers("process:", 4))

    Parameters
    ----------
    template : the node's class, or a function that makes it; a registered name for a worker that takes no code.
    id, role, config, log : given to the template under these names (id also as node_id), as far as its signature, or
        that of a base that it passes its keyword arguments on to, has them.
    args, kwargs : given to the template besides.
    backend : "inline" for an object in this process, else the URL of a worker of its own ("thread:", "process:",
        "ray:", "tcp://host:7000"), a started Backend to live on, or a function that makes one.
    pool : `Workers` that many nodes share, instead of a backend.

    A node that has a method `build` has it called once, without arguments, when all else is there.
    """

    __slots__ = ("_backend", "_kwargs", "_making", "_pool", "args", "config", "handle", "id", "log", "role", "template")

    def __init__(
        self,
        template: Callable[..., Any] | str,
        id: NodeId,
        role: str = "train",
        config: Any = None,
        log: Any = None,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        backend: str | Backend | Callable[[], Backend] = INLINE,
        pool: Workers | None = None,
    ) -> None:
        self.template, self.id, self.role, self.config, self.log = template, id, role, config, log
        self.args, self._kwargs = args, kwargs
        self._backend, self._pool = backend, pool
        self.handle: Any = None
        """The node: an object, or an `ActorRef` of one on a worker; None before it is built."""
        self._making: asyncio.Lock | None = None

    def __repr__(self) -> str:
        return f"VirtualNode({self.id!r}, {self.role}, {'built' if self.built else 'not built'})"

    @property
    def built(self) -> bool:
        """If the node exists."""
        return self.handle is not None

    @property
    def kwargs(self) -> dict[str, Any]:
        """The template's keyword arguments: those given, and of id, node_id, role, config and log those it takes."""
        mine = {"id": self.id, "node_id": self.id, "role": self.role, "config": self.config, "log": self.log}
        takes = _parameters(self.template)
        return {name: value for name, value in mine.items() if name in takes} | dict(self._kwargs or {})

    async def build(self, bundle_idx: int | None = None, placement_group: Any = None) -> Any:
        """The handle; the node is made by the first call, whoever else calls meanwhile, and never twice.

        `bundle_idx` and `placement_group` are where on a Ray cluster; other workers have no use for them. Raises
        what the template raises, and ActorError if its worker does not come up; another call then tries again.
        """
        self._making = self._making or asyncio.Lock()
        async with self._making:
            if self.handle is None:
                handle = await self._make(bundle_idx, placement_group)
                try:
                    if callable(getattr(handle, "build", None)):
                        await ask(handle, "build")
                except BaseException:
                    await self.end(handle)
                    raise
                self.handle = handle
        return self.handle

    async def aclose(self) -> None:
        """End the node, and its worker if it has one of its own; `build` makes a new one. May be called twice."""
        handle, self.handle = self.handle, None
        await self.end(handle)

    async def end(self, handle: Any, dead: bool = False) -> None:
        """End a handle that was built here; of a `dead` one, the worker that many share ends too."""
        if isinstance(handle, ActorRef):
            if self._pool is not None:
                await self._pool.end(handle, dead)
            else:
                await handle.aclose()

    def placed(self, pool: Workers) -> None:
        """Live on these workers, if no other place was chosen."""
        if self._backend == INLINE and self._pool is None:
            self._pool = pool

    async def _make(self, bundle_idx: int | None, placement_group: Any) -> Any:
        if self._pool is not None:
            return await self._pool.spawn(self.template, *self.args, **self.kwargs)
        if self._backend == INLINE:
            made = self.template(*self.args, **self.kwargs)  # type: ignore[operator]
            return await made if inspect.isawaitable(made) else made
        where: Any = self._backend
        if placement_group is not None and isinstance(where, str) and where.startswith("ray:"):
            bundle = -1 if bundle_idx is None else bundle_idx
            where = partial(resolve, where, placement_group=placement_group, bundle=bundle)
        return await spawn(self.template, *self.args, backend=where, **self.kwargs)


def _parameters(template: Any) -> frozenset[str]:
    """The names of what it takes; none of what only its worker knows."""
    makers = [each.__dict__["__init__"] for each in template.__mro__ if "__init__" in each.__dict__] if (
        isinstance(template, type)
    ) else [template]  # fmt: skip
    names: set[str] = set()
    for maker in makers:
        try:
            taken = inspect.signature(maker).parameters
        except (TypeError, ValueError):
            break
        names |= taken.keys()
        if not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
            break  # what it does not take itself goes no further
    return frozenset(names) - {"args", "kwargs"}
