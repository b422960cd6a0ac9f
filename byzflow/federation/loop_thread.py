"""An event loop on a thread of its own, for code that blocks and talks to code that does not."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from byzflow.errors import FederationError, Stopped

T = TypeVar("T")


class LoopThread:
    """Runs from the first call until `close`, or until nobody refers to it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of a coroutine there; this thread waits. Raises Stopped after `close`."""
        with self._starting:
            if self.closed:
                work.close()
                raise Stopped("the federation was stopped")
            if self._loop is None:
                self._start()
        if threading.current_thread() is self._thread:
            work.close()
            raise FederationError("a node's build, send and receive may not be called from a coroutine")
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End the loop and its thread. May be called twice."""
        with self._starting:
            self.closed = True
            if self._loop is None or self._thread is threading.current_thread():
                return
            self._end()
            assert self._thread is not None
            self._thread.join()

    def _start(self) -> None:
        self._loop = loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(loop,), name=self._name, daemon=True)
        self._end = weakref.finalize(self, _stop, loop)
        self._thread.start()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(_wind_down())
    finally:
        loop.close()


async def _wind_down() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
