"""`ray:` - a worker is an actor of Ray's; what it is asked goes over a link made of two calls."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Self

from byzflow.actors.link import Frame, Link, MemoryLink
from byzflow.actors.objects import dumps, loads
from byzflow.actors.remote import LinkBackend, Worker, serve
from byzflow.errors import ActorError, LinkClosed

OPTIONS = {"num_cpus", "num_gpus", "resources", "max_restarts", "placement_group", "bundle", "address"}


class RayBackend(LinkBackend):
    """An actor of Ray's, on the cluster that this process is connected to, or on a local one that is started.

    Options: `num_cpus` (1) and `num_gpus` (0; fractions share one), `resources`, `max_restarts` by Ray itself (0: a
    pool replaces what dies), a `placement_group` and which `bundle` of it (-1: any), the cluster's `address`. Never
    make another organisation's machine a worker of Ray's: its processes run whatever any of them sends.
    """

    scheme = "ray"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Of "ray:"."""
        if url != "ray:" or options.keys() - OPTIONS:
            raise ActorError(
                f"a Ray worker is 'ray:' with options of {', '.join(sorted(OPTIONS))}; got {url!r} {options}"
            )
        return cls(**options)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.address = options.pop("address", None)
        self.options = {"num_cpus": 1, "num_gpus": 0, "max_restarts": 0} | options
        self.capabilities = frozenset({"gpu" if self.options["num_gpus"] else "cpu"})
        self._actor: Any = None

    async def connect(self, name: str) -> Link:
        """Make the actor. Raises ActorError without Ray, or if the cluster has no room for it."""
        try:
            import ray
        except ImportError:
            raise ActorError("ray: workers need Ray: pip install 'byzflow[ray]'") from None
        if not ray.is_initialized():
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        options = dict(self.options)
        bundle = options.pop("bundle", -1)
        if group := options.pop("placement_group", None):
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=bundle
            )
        self._actor = ray.remote(Place).options(max_concurrency=1000, **options).remote(name)
        ready = self._actor.ready.remote()
        done, _ = await asyncio.to_thread(ray.wait, [ready], timeout=PATIENCE)
        if not done:
            ray.kill(self._actor)
            raise ActorError(
                f"Ray has no room for worker {name!r} with {self.options}; `ray status` shows what is free"
            )
        return RayLink(self._actor, f"worker {name!r} on Ray")

    async def close(self) -> None:
        """End the link, and the actor."""
        await super().close()
        if self._actor is not None:
            import ray

            with suppress(Exception):  # Ray itself may be gone
                ray.kill(self._actor)
            self._actor = None


PATIENCE = 60.0  # seconds for an actor to be placed and started


class Place:
    """The actor: takes frames in, gives frames out, and is a worker in between."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._serving: asyncio.Task[None] | None = None
        self._link: MemoryLink | None = None

    async def ready(self) -> None:
        """Begin to serve."""
        self._link, inside = MemoryLink.pair(limit=0)
        self._serving = asyncio.create_task(serve(inside, Worker(self._name)))

    async def put(self, head: bytes, buffers: list[Any]) -> None:
        """A frame from the owner."""
        assert self._link is not None
        await self._link.send(unpacked(head, buffers))

    async def take(self) -> tuple[bytes, list[Any]]:
        """The next frame for the owner."""
        assert self._link is not None
        return packed(await self._link.recv())


class RayLink(Link):
    """The owner's end. Arrays go as numpy's, which Ray shares between the processes of one machine."""

    trusted = True

    def __init__(self, actor: Any, peer: str) -> None:
        super().__init__()
        self.peer, self._actor, self._closed = peer, actor, asyncio.Event()

    async def send(self, frame: Frame) -> None:
        """Raises TypeError for a value that cannot travel."""
        await self._call("put", *packed(frame))
        self.stats.frames_out += 1

    async def recv(self) -> Frame:
        """The next frame of the actor's."""
        head, buffers = await self._call("take")
        self.stats.frames_in += 1
        return unpacked(head, buffers)

    async def close(self) -> None:
        """End this side; the backend ends the actor."""
        self._closed.set()

    async def _call(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayError

        if self._closed.is_set():
            raise LinkClosed("this link was closed")
        asked = asyncio.ensure_future(_awaited(getattr(self._actor, method).remote(*arguments)))
        closing = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait([asked, closing], return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise LinkClosed("this link was closed")
            return asked.result()
        except RayError as error:
            raise LinkClosed(f"{self.peer} is gone: {type(error).__name__}") from None
        finally:
            closing.cancel()
            asked.cancel()


async def _awaited(reference: Any) -> Any:
    return await reference


def packed(frame: Frame) -> tuple[bytes, list[Any]]:
    """A frame as bytes and numpy arrays."""
    import numpy as np

    head, buffers = dumps(frame)
    return head, [np.frombuffer(each, np.uint8) for each in buffers]


def unpacked(head: bytes, buffers: list[Any]) -> Frame:
    """The frame again. Ray's memory is shared, and read only: what lies in the frame is a copy of it."""
    return loads(head, [memoryview(each.copy()) for each in buffers])
