"""Red's names: change the import lines, and what was written for Red runs on threads of one process, without Ray.

    from byzflow_compat.red import FederatedBase, FederatedNode, VirtualNode, ray

What Red's documents say of a name is what it does here; `docs/from_red.md` has the differences.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeVar

from byzflow.errors import Stopped
from byzflow.federation.federated_base import FederatedBase
from byzflow.federation.federated_node import FederatedNode
from byzflow.federation.learning_schemas import (
    ClusterFederatedLearningSchema,
    KRegularFederatedLearningSchema,
    MeshFederatedLearningSchema,
    RingFederatedLearningSchema,
    StarFederatedLearningSchema,
)
from byzflow.federation.message import Message
from byzflow.federation.own_thread import on_own_thread
from byzflow.federation.topology_manager import TopologyManager
from byzflow.federation.virtual_node import VirtualNode as _VirtualNode

__all__ = [
    "ClusterFederatedLearningSchema",
    "EndProcessException",
    "FederatedBase",
    "FederatedNode",
    "KRegularFederatedLearningSchema",
    "MeshFederatedLearningSchema",
    "Message",
    "Queue",
    "RingFederatedLearningSchema",
    "StarFederatedLearningSchema",
    "TopologyManager",
    "VirtualNode",
    "ray",
    "remote",
]

EndProcessException = Stopped
C = TypeVar("C", bound=type)


class VirtualNode(_VirtualNode):
    """`build` returns when the node is there, and `handle.method.remote(...)` calls it on another thread."""

    __slots__ = ("_building",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._building = threading.Lock()

    def build(self, bundle_idx: int | None = None, placement_group: Any = None) -> Any:
        """The handle; the node is made by the first call, whatever threads call."""
        with self._building:
            if not self.built:
                self._making = None  # of the loop that is made for this call
                asyncio.run(super().build(bundle_idx, placement_group))
        return self.handle

    async def _make(self, bundle_idx: int | None, placement_group: Any) -> Any:
        return Handle(await super()._make(bundle_idx, placement_group))


class Handle:
    """A node as Ray shows it: `handle.method.remote(...)` gives a future at once, for `ray.get`."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.node, name)
        return RemoteMethod(found, name) if isinstance(found, MethodType | FunctionType | partial) else found


class RemoteMethod:
    """A method of a node; called plainly it runs at once."""

    def __init__(self, method: Callable[..., Any], name: str) -> None:
        self._method, self._name = method, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, **kwargs)

    def remote(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """On a thread of its own."""
        return on_own_thread(self._name, self._method, *args, **kwargs)


class _Ray:
    """The few functions of Ray that federations call."""

    @staticmethod
    def get(futures: Any, timeout: float | None = None) -> Any:
        """The outcome of a future, or of each of several; raises what they raise, and TimeoutError."""
        if isinstance(futures, Sequence):
            return [_Ray.get(each, timeout) for each in futures]
        return futures.result(timeout) if isinstance(futures, Future) else futures

    @staticmethod
    def put(value: Any) -> Any:
        """The value itself: nothing is copied within a process."""
        return value

    @staticmethod
    def init(*args: Any, **kwargs: Any) -> None:
        """Nothing to start."""

    @staticmethod
    def remote(*args: Any, **kwargs: Any) -> Any:
        """See `remote`."""
        return remote(*args, **kwargs)


ray = _Ray()


def remote(*args: Any, **options: Any) -> Any:
    """A decorator that leaves the class as it is: where a node lives is its `VirtualNode`'s to say.

    Its options, such as max_restarts, are settings of `byzflow.federation.supervision.Supervision` here.
    """
    if len(args) == 1 and isinstance(args[0], type) and not options:
        return args[0]

    def decorate(decorated: C) -> C:
        return decorated

    return decorate


class Queue(queue.Queue[Any]):
    """First in, first out, between threads; `maxsize` bounds it."""

    Empty = queue.Empty
    Full = queue.Full

    def put(  # type: ignore[override]
        self, item: Any, index: int | None = None, block: bool = True, timeout: float | None = None
    ) -> None:
        """At the end, or at a place from 0, the front. Waits where it is full; raises Queue.Full."""
        super().put((index, item), block, timeout)

    def _put(self, placed: tuple[int | None, Any]) -> None:
        index, item = placed
        self.queue.insert(len(self.queue) if index is None else index, item)
