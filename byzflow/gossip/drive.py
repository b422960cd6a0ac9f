"""Runs a node program: each effect it awaits is performed, and its outcome given back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from byzflow.gossip.effects import Effect


async def drive(program: Coroutine[Any, Any, Any], perform: Callable[[Effect[Any]], Awaitable[Any]]) -> Any:
    """The program's return value. What `perform` raises is raised in the program, where it awaited the effect.

    Raises TypeError for a program that awaits anything but effects.
    """
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            try:
                effect = program.send(value) if error is None else program.throw(error)
            except StopIteration as end:
                return end.value
            if not isinstance(effect, Effect):
                raise TypeError(f"a node program awaited {effect!r}; it may only await effects of its door")
            value, error = None, None
            try:
                value = await perform(effect)
            except Exception as fault:
                error = fault
    finally:
        program.close()
