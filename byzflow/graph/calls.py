"""Calls whose outcome another thread or event loop waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


def called(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """fn(...). What is no error of a call, such as StopIteration or SystemExit, is raised as RuntimeError."""
    try:
        return fn(*args, **kwargs)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        # A future does not take StopIteration, so that who waits for it would wait for ever; others end an event
        # loop, read as if the caller itself had been cancelled, or are nothing that a worker could tell.
        raise _as_error(error) from error


async def awaited(awaitable: Awaitable[Any]) -> Any:
    """Its result, by the same rule; being cancelled from outside stays what it is."""
    try:
        return await awaitable
    except (Exception, GeneratorExit):  # the second is how a coroutine that nobody runs any more is put away
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise _as_error(error) from error


async def ended(running: asyncio.Future[Any]) -> None:
    """Wait until it is over, for a caller that was cancelled: an error in it is nobody's any more, and not logged."""
    running.add_done_callback(lambda each: each.cancelled() or each.exception())
    await asyncio.wait([running])


def _as_error(stop: BaseException) -> RuntimeError:
    return RuntimeError(f"the call raised {type(stop).__name__}({stop}), which is no error and would end what runs it")
