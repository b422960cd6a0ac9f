"""A mailbox in which each message is taken exactly once."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from byzflow.errors import MailboxFull, MessageTimeout


@dataclass(frozen=True)
class Message:
    """A payload, its type, and who sent it, as whoever delivers it knows; None if nobody knows."""

    message_type: str
    payload: Any
    sender: str | None = None


EACH = 64  # bytes that any value takes at least


def nbytes(payload: Any) -> int:
    """About how many bytes a payload of plain data, arrays and tensors takes; other objects count as nothing much."""
    total, rest, seen = 0, [payload], set[int]()
    while rest:
        each = rest.pop()
        total += EACH
        if isinstance(each, Tensor | np.ndarray):
            total += each.nbytes
        elif isinstance(each, str | bytes):
            total += len(each)
        elif isinstance(each, Mapping | list | tuple) and id(each) not in seen:
            seen.add(id(each))
            rest += [*each.keys(), *each.values()] if isinstance(each, Mapping) else each
    return total


class Mailbox:
    """Messages by type, in the order in which they came. Belongs to one event loop.

    `limit` bounds how many wait, over all types; `room`, if given, their bytes. With `each` both are for every sender,
    where senders are proven: then one that floods keeps nobody else's messages out.
    """

    def __init__(self, limit: int = 1024, room: int | None = None, each: bool = False) -> None:
        self.limit, self.room, self._each = limit, room, each
        self._kept: dict[str, deque[tuple[Message, int]]] = {}
        self._count: Counter[str | None] = Counter()  # by sender, or all under None
        self._bytes: Counter[str | None] = Counter()
        self._waiting: dict[str, list[asyncio.Future[Message]]] = {}

    def __len__(self) -> int:
        """Messages that nobody has taken yet."""
        return sum(map(len, self._kept.values()))

    def put(self, message: Message) -> None:
        """Give it to who has waited longest for its type, or keep it. Raises MailboxFull."""
        if not self._given(message):
            self._keep(message, deque.append, 1)

    async def take(self, message_type: str, timeout: float | None = None) -> Message:
        """The oldest message of this type, once there is one. Raises MessageTimeout after `timeout` seconds."""
        if message_type in self._kept:
            return self._oldest(message_type)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(message_type, [])
        waiting.append(future)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled():  # it came in the last moment
                self.put_back(future.result(), math.inf)
            if isinstance(error, TimeoutError):
                raise MessageTimeout(f"no message {message_type!r} came within {timeout:g} s") from None
            raise
        finally:
            waiting.remove(future)
            if not waiting:
                self._waiting.pop(message_type, None)

    def put_back(self, message: Message, times: float = 2) -> None:
        """Undo `take`, for one who was cancelled when he had it: the next to ask gets it.

        It may go beyond the bounds, as others took its room. Raises MailboxFull at so many `times` the bounds.
        """
        if not self._given(message):
            self._keep(message, deque.appendleft, times)

    def _keep(self, message: Message, into: Callable[[deque[Any], Any], None], times: float) -> None:
        whose = message.sender if self._each else None
        size = 0 if self.room is None else nbytes(message.payload)
        waits = ""
        if self._count[whose] >= times * self.limit:
            waits = f"{self._count[whose]} messages wait and the limit is {self.limit}"
        elif self.room is not None and self._bytes[whose] + size > times * self.room:
            waits = f"messages of {self._bytes[whose]} bytes wait, one of {size} came, and the limit is {self.room}"
        if waits:
            raise MailboxFull(
                f"{waits}: {message.message_type!r} of {message.sender or 'an unknown sender'} is refused; "
                "take messages, or raise the limit"
            )
        into(self._kept.setdefault(message.message_type, deque()), (message, size))
        self._count[whose] += 1
        self._bytes[whose] += size

    def _given(self, message: Message) -> bool:
        """If somebody waited for it, who has it now."""
        for future in self._waiting.get(message.message_type, ()):
            if not future.done():
                future.set_result(message)
                return True
        return False

    def _oldest(self, message_type: str) -> Message:
        kept = self._kept[message_type]
        message, size = kept.popleft()
        whose = message.sender if self._each else None
        self._count[whose] -= 1
        self._bytes[whose] -= size
        if not self._count[whose]:
            del self._count[whose], self._bytes[whose]
        if not kept:
            del self._kept[message_type]  # types come from senders: none is to stay for ever
        return message
