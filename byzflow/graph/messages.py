"""A mailbox in which each message is taken exactly once."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from byzflow.errors import MailboxFull, MessageTimeout


@dataclass(frozen=True)
class Message:
    """A payload, its type, and who sent it, as whoever delivers it knows; None if nobody knows."""

    message_type: str
    payload: Any
    sender: str | None = None


class Mailbox:
    """Messages by type, in the order in which they came. Belongs to one event loop.

    `limit` bounds how many wait, over all types.
    """

    def __init__(self, limit: int = 1024) -> None:
        self.limit = limit
        self._kept: dict[str, deque[Message]] = {}
        self._waiting: dict[str, list[asyncio.Future[Message]]] = {}

    def __len__(self) -> int:
        """Messages that nobody has taken yet."""
        return sum(map(len, self._kept.values()))

    def put(self, message: Message) -> None:
        """Give it to who has waited longest for its type, or keep it. Raises MailboxFull."""
        if self._given(message):
            return
        if len(self) >= self.limit:
            raise MailboxFull(
                f"{len(self)} messages wait and the limit is {self.limit}: {message.message_type!r} of "
                f"{message.sender or 'an unknown sender'} is refused; take messages, or raise the limit"
            )
        self._kept.setdefault(message.message_type, deque()).append(message)

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
                self.put_back(future.result())
            if isinstance(error, TimeoutError):
                raise MessageTimeout(f"no message {message_type!r} came within {timeout:g} s") from None
            raise
        finally:
            waiting.remove(future)
            if not waiting:
                self._waiting.pop(message_type, None)

    def put_back(self, message: Message) -> None:
        """Undo `take`, for one who was cancelled when he had it: the next to ask gets it. May go beyond `limit`."""
        if not self._given(message):
            self._kept.setdefault(message.message_type, deque()).appendleft(message)

    def _given(self, message: Message) -> bool:
        """If somebody waited for it, who has it now."""
        for future in self._waiting.get(message.message_type, ()):
            if not future.done():
                future.set_result(message)
                return True
        return False

    def _oldest(self, message_type: str) -> Message:
        kept = self._kept[message_type]
        message = kept.popleft()
        if not kept:
            del self._kept[message_type]  # types come from senders: none is to stay for ever
        return message
