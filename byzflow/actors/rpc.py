"""Requests and answers over a link, in both directions at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from itertools import count
from typing import Any

from byzflow.actors.link import Frame, Link, Unreadable
from byzflow.errors import ActorError, LinkClosed, WorkerDied, WorkerGone, portable, restored, told
from byzflow.graph.calls import ended

Handle = Callable[[str, list[Any]], AbstractAsyncContextManager[Any]]
"""The result of a request, which stays as it is within the block: until it was sent."""
RESULT, ERROR, CANCEL = "result", "error", "cancel"
PATIENCE = 60.0  # seconds for another machine to end what was cancelled, after which the link to it ends


class Rpc:
    """One end of a link over which both ends ask and answer.

    Each request is answered once, by a result or an error; a cancelled one is cancelled at the other end, and its
    caller waits until that has answered, for PATIENCE seconds where it is not trusted. When the link ends, whatever
    waits raises WorkerDied, and what runs here for the other end is cancelled.
    """

    def __init__(self, link: Link, handle: Handle, *, limit: int = 1024) -> None:
        """`async with handle(kind, arguments)` answers the other end; at most `limit` requests of it are in work.

        What is beyond that is refused, and nothing more is read until the refusal has gone out.
        """
        self.link = link
        self._handle, self._limit = handle, limit
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._served: dict[int, asyncio.Task[None]] = {}
        self._closed = ""

    @property
    def ended(self) -> bool:
        """If no request can be made any more."""
        return bool(self._closed)

    async def run(self) -> None:
        """Receive until the link ends; start this as a task."""
        try:
            while True:
                await self._take(await self.link.recv())
        except LinkClosed as error:
            self._end(str(error))
        finally:
            self._end("the worker's connection ended")
            await self.link.close()

    async def request(self, kind: str, *arguments: Any, late: Callable[[Any], object] | None = None) -> Any:
        """The other end's answer. Raises what it raised, WorkerDied, or WorkerGone if it was never asked.

        `late` is given the answer that came in the moment in which the caller was cancelled.
        """
        if self._closed:
            raise WorkerGone(self._closed)
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            await self.link.send(Frame(kind, number, list(arguments)))  # cancelled here it was not asked
        except BaseException as error:
            del self._asked[number]
            if future.done() and not future.cancelled():
                future.exception()  # seen
            if isinstance(error, LinkClosed):
                raise WorkerDied(self._closed or str(error)) from None
            raise
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                await self._cancelled(number, future)
            await ended(future)
            if late is not None and not future.cancelled() and future.exception() is None:
                late(future.result())
            raise
        finally:
            self._asked.pop(number, None)

    async def close(self, why: str = "the worker was closed") -> None:
        """End the link and all that waits."""
        self._end(why)
        await self.link.close()

    async def _cancelled(self, number: int, future: asyncio.Future[Any]) -> None:
        """Wait until the other end has ended a request: nothing is to be left running there."""
        try:
            async with asyncio.timeout(None if self.link.trusted else PATIENCE):
                with suppress(LinkClosed):
                    await self.link.send(Frame(CANCEL, number))
                await ended(future)
        except TimeoutError:
            await self.close(f"{self.link.peer} did not end within {PATIENCE:g} s what it was asked to end")

    async def _take(self, frame: Frame) -> None:
        if frame.kind in (RESULT, ERROR):
            future = self._asked.get(frame.number)
            if future is not None and not future.done():
                _settle(future, frame, "" if self.link.trusted else self.link.peer)
        elif frame.kind == CANCEL:
            await asyncio.sleep(0)  # a task that is cancelled before its first step answers nobody
            if task := self._served.get(frame.number):
                task.cancel()
        elif frame.number in self._served:  # it would hide the first, which nobody could then count or cancel
            why = "a request with the number of another one that is in work"
            self.link.stats.refused[why] = self.link.stats.refused.get(why, 0) + 1
            raise LinkClosed(why)
        elif len(self._served) >= self._limit:
            refusal = ActorError(f"{self._limit} requests are in work, which is the limit; wait for answers")
            await self._answer(frame.number, refusal)
        else:
            task = asyncio.create_task(self._serve(frame))
            self._served[frame.number] = task
            task.add_done_callback(lambda _: self._served.pop(frame.number, None))

    async def _serve(self, frame: Frame) -> None:
        async with AsyncExitStack() as until_sent:
            try:
                if isinstance(frame.body, Unreadable):
                    raise TypeError(f"what was sent does not read in the worker: {frame.body.why}")
                result = await until_sent.enter_async_context(self._handle(frame.kind, frame.body))
            except asyncio.CancelledError:
                await self._answer(frame.number, ActorError("the call was cancelled"))
            except Exception as error:
                await self._answer(frame.number, error)
            else:
                await self._answer(frame.number, result, RESULT)

    async def _answer(self, number: int, outcome: Any, kind: str = ERROR) -> None:
        body = outcome
        if kind == ERROR:
            body = portable(outcome) if self.link.trusted else told(outcome)
        with suppress(LinkClosed):
            try:
                await self.link.send(Frame(kind, number, body))
            except LinkClosed:
                raise
            except Exception as error:  # a result, or an error's attribute, that cannot cross
                await self.link.send(Frame(ERROR, number, told(outcome if kind == ERROR else error)))

    def _end(self, why: str) -> None:
        if self._closed:
            return
        self._closed = why
        for future in self._asked.values():
            if not future.done():
                future.set_exception(WorkerDied(why))
        for task in self._served.values():
            task.cancel()


def _settle(future: asyncio.Future[Any], answer: Frame, peer: str) -> None:
    """`peer` is noted in its errors."""
    if answer.kind == RESULT and not isinstance(answer.body, Unreadable):
        future.set_result(answer.body)
        return
    if isinstance(answer.body, Unreadable):
        error: Exception = TypeError(f"the worker's answer does not read here: {answer.body.why}")
    else:
        error = answer.body if isinstance(answer.body, Exception) else restored(answer.body)
    if peer:
        error.add_note(f"on {peer}")
    future.set_exception(error)
