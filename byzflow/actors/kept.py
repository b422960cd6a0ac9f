"""Workers that outlive their link for a while, each for the peer that it was made for."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from byzflow.actors.link import Link
from byzflow.actors.remote import Worker
from byzflow.actors.rpc import Rpc
from byzflow.errors import ActorError


@dataclass
class Seat:
    """One worker, who it belongs to, and the link that it has now."""

    worker: Worker
    owner: str
    link: Link
    ending: asyncio.TimerHandle | None = None


class Kept:
    """The workers that may be found again: by their owner, who has to give the token back that it was given."""

    def __init__(self, seconds: float, limit: int) -> None:
        """`seconds` without a link; at most `limit` workers of one owner wait for it, then the oldest goes."""
        self.seconds, self._limit = seconds, limit
        self._seats: dict[str, Seat] = {}

    def keep(self, worker: Worker, owner: str, link: Link) -> str:
        """Keep this worker from now on: the token that finds it. Raises ActorError."""
        if not self.seconds:
            raise ActorError("this server keeps no workers: start it with --keep SECONDS, or dial without keep")
        if any(seat.worker is worker for seat in self._seats.values()):
            raise ActorError("this worker is kept already")
        token = secrets.token_hex(16)
        self._seats[token] = Seat(worker, owner, link)
        return token

    def rejoin(self, token: str, owner: str, rpc: Rpc) -> tuple[Worker, Link]:
        """The worker of this token, and its earlier link, to be closed; its new one is that of `rpc`.

        Raises ActorError if it is not there, or another's. Does not wait: in between, the new link might end.
        """
        seat = self._seats.get(token)
        if seat is None or seat.owner != owner:
            raise ActorError(
                "no worker is kept under this token: the server was restarted, or too much time has passed; "
                "its objects are gone"
            )
        if seat.link is rpc.link and seat.ending is None:
            raise ActorError("the worker of this token is reached by this very link")
        if seat.ending is not None:
            seat.ending.cancel()
            seat.ending = None
        earlier, seat.link = seat.link, rpc.link
        seat.worker.rpc = rpc
        return seat.worker, earlier

    def forget(self, worker: Worker) -> None:
        """Its owner needs it no more: it ends with its link."""
        self._seats = {token: seat for token, seat in self._seats.items() if seat.worker is not worker}

    def left(self, worker: Worker, link: Link) -> None:
        """This link has ended, and was the worker's, unless another one is by now."""
        token = next((token for token, seat in self._seats.items() if seat.worker is worker), "")
        if not token:
            worker.host.close()
        elif (seat := self._seats[token]).link is link:
            seat.ending = asyncio.get_running_loop().call_later(self.seconds, self._end, token)
            waiting = [key for key, each in self._seats.items() if each.owner == seat.owner and each.ending]
            if len(waiting) > self._limit:
                self._end(waiting[0])

    def close(self) -> None:
        """End them all."""
        for token in tuple(self._seats):
            self._end(token)

    def _end(self, token: str) -> None:
        seat = self._seats.pop(token)
        if seat.ending is not None:
            seat.ending.cancel()
        seat.worker.host.close()
