"""Calls whose outcome another thread or event loop waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

# A future does not take StopIteration, so that who waits for it would wait for ever; the others end an event loop, or
# read as if the caller itself had been cancelled.
NO_ERRORS = (StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError)


def called(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """fn(...). What is no error of a call, such as StopIteration or SystemExit, is raised as RuntimeError."""
    try:
        return fn(*args, **kwargs)
    except NO_ERRORS as stop:
        raise _as_error(stop) from stop


async def awaited(awaitable: Awaitable[Any]) -> Any:
    """Its result, by the same rule; being cancelled stays what it is."""
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as stop:
        raise _as_error(stop) from stop


def _as_error(stop: BaseException) -> RuntimeError:
    return RuntimeError(f"the call raised {type(stop).__name__}({stop}), which is no error and would end what runs it")
