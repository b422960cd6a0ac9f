"""New values for the arrays that are no weights: counters, and running statistics such as BatchNorm's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import byzflow
from byzflow_flower.sent_model import Arrays, SentModel


class HasBuffers(Protocol):
    """A reply, or a neighbour's model."""

    @property
    def buffers(self) -> Arrays:
        """Its buffers, by name."""
        ...


def median_buffers(sent: SentModel, replies: Sequence[HasBuffers]) -> dict[str, NDArray[Any]]:
    """Each buffer's median over the replies, number by number, in the dtype sent.

    With more than half of the replies honest, it lies between honest values. For integers and booleans it is the
    lower of two middle values: one that a client did send, so nothing is rounded and nothing overflows.
    """
    floating = [name for name in sent.buffers if sent.arrays[name].dtype.kind == "f"]
    new: dict[str, NDArray[Any]] = {}
    if floating:
        new.update(byzflow.aggregate("median", [{name: each.arrays[name] for name in floating} for each in replies]))
    for name in sent.buffers:
        if name not in new:
            stacked = np.stack([each.arrays[name] for each in replies])
            new[name] = np.sort(stacked, axis=0)[(len(replies) - 1) // 2]
    return new
