"""A connection between two ends that passes frames, whole and in order."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from byzflow.errors import LinkClosed


@dataclass(frozen=True)
class Frame:
    """One message between two ends: what it is, which request it belongs to, and a value."""

    kind: str
    number: int
    body: Any = None


@dataclass(frozen=True)
class Unreadable:
    """The body of a frame that came whole, but whose value cannot be made at this end."""

    why: str


@dataclass
class Stats:
    """What has passed a link."""

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # frames that were refused, by reason


class Link(ABC):
    """One end. Frames are sent by several tasks and received by one."""

    trusted: ClassVar[bool] = False
    """If the other end is of the same trust domain: then values may be any objects, and functions may cross."""
    peer: str = ""
    """Who is at the other end, as the connection itself proves."""

    def __init__(self) -> None:
        self.stats = Stats()

    @abstractmethod
    async def send(self, frame: Frame) -> None:
        """Pass a frame on; waits while the other end is slow. Raises LinkClosed."""

    @abstractmethod
    async def recv(self) -> Frame:
        """The next frame. Raises LinkClosed once the other end is gone."""

    @abstractmethod
    async def close(self) -> None:
        """End the connection at both ends. May be called twice."""


class MemoryLink(Link):
    """Two ends in one event loop, over queues: for what is above links where no connection is needed."""

    trusted = True

    def __init__(self, inbox: asyncio.Queue[Frame | None], outbox: asyncio.Queue[Frame | None]) -> None:
        super().__init__()
        self._inbox, self._outbox, self._closed = inbox, outbox, False

    @classmethod
    def pair(cls, limit: int = 16) -> tuple[MemoryLink, MemoryLink]:
        """Both ends."""
        one: asyncio.Queue[Frame | None] = asyncio.Queue(limit)
        other: asyncio.Queue[Frame | None] = asyncio.Queue(limit)
        return cls(one, other), cls(other, one)

    async def send(self, frame: Frame) -> None:
        """Put it into the other end's queue."""
        if self._closed:
            raise LinkClosed("this link was closed")
        await self._outbox.put(frame)
        self.stats.frames_out += 1

    async def recv(self) -> Frame:
        """Take it from this end's queue."""
        frame = None if self._closed else await self._inbox.get()
        if frame is None:
            self._closed = True
            raise LinkClosed("the other end closed this link")
        self.stats.frames_in += 1
        return frame

    async def close(self) -> None:
        """End both directions."""
        if not self._closed:
            self._closed = True
            for queue in (self._outbox, self._inbox):
                while queue.full():
                    queue.get_nowait()
                queue.put_nowait(None)
