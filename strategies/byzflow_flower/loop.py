"""A strategy whose class has a training loop of its own, run with another strategy's steps in it."""

from __future__ import annotations

from typing import Any

from flwr.serverapp.strategy import Strategy

STEPS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary")


def in_its_own_loop(inner: Strategy, outer: Strategy) -> Strategy:
    """An object whose `start` is that of `inner`'s class and whose steps are those of `outer`.

    The subclass's loop must see itself as `self`, with its own state, and still call the outer steps.
    """
    kind = type(inner)
    looping: Strategy = object.__new__(type(f"Robust{kind.__name__}", (kind,), {n: _step(outer, n) for n in STEPS}))
    looping.__dict__ = inner.__dict__
    return looping


def _step(outer: Strategy, name: str) -> Any:
    return lambda _, *args, **kwargs: getattr(outer, name)(*args, **kwargs)
