"""One batch, cut along its first dimension into a batch for each worker."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from byzflow.errors import SpecError


def split(batch: Any, n: int) -> list[Any]:
    """n batches of the same kind whose sizes differ by one at most, in order, sharing memory with the batch.

    Tensors and arrays are cut along dimension 0, in mappings, sequences, named tuples and dataclasses however deep;
    so are lists that hold something else for each sample, such as texts. Raises SpecError for fewer samples than
    workers, and for what it cannot read.
    """
    count = size(batch)
    if count < n:
        raise SpecError(
            f"a batch of {count} samples cannot be shared by n={n} workers: give the loader a larger batch_size, "
            "and drop_last=True if only the last batch is so small"
        )
    return [_cut(batch, a, b, count) for a, b in pairwise(i * count // n for i in range(n + 1))]


def size(batch: Any) -> int:
    """The number of samples: the first dimension that all tensors of the batch share. Raises SpecError."""
    sizes = {len(each) for each in _arrays(batch)}
    if len(sizes) != 1:
        found = f"tensors of first dimensions {sorted(sizes)}" if sizes else "no tensor"
        raise SpecError(f"the samples of a batch with {found} cannot be told apart: pass split=, a function")
    return sizes.pop()


def _arrays(value: Any) -> Iterator[Tensor | np.ndarray[Any, Any]]:
    """The tensors and arrays with at least one dimension, wherever they are."""
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim:
            yield value
    else:
        for part in _parts(value):
            yield from _arrays(part)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    return []


def _cut(value: Any, start: int, stop: int, count: int) -> Any:
    """Samples `start` to `stop` of `count`."""
    if isinstance(value, Tensor | np.ndarray):
        return value[start:stop] if value.ndim else value
    if isinstance(value, MutableMapping):
        part = copy.copy(value)
        part.update({name: _cut(each, start, stop, count) for name, each in value.items()})
        return part
    if isinstance(value, list | tuple):
        if len(value) == count and not any(True for _ in _arrays(value)):
            return value[start:stop]
        parts = [_cut(each, start, stop, count) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cut(getattr(value, f.name), start, stop, count) for f in fields(value)})
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value  # it belongs to no one sample
    raise SpecError(f"a batch with a {type(value).__name__} in it cannot be split: pass split=, a function")
