"""The model that the server sent in a round: the one thing about a reply that can be trusted.

Its floating arrays are weights, compared and aggregated as updates (reply minus sent). All others are buffers:
integers, booleans, and the arrays whose names say so, such as BatchNorm's running statistics. Their scale has
nothing to do with the weights', so they stay out of every distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Self

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from byzflow.rows import Shifted
from byzflow_flower.npy import BadArray, read

Arrays = Mapping[str, NDArray[Any]]

BATCH_NORM = ("*running_mean", "*running_var", "*num_batches_tracked")
CHUNK = 1 << 16  # numbers that are looked at one by one at a time


@dataclass(frozen=True)
class SentModel:
    """Keys, order, shapes, dtypes and values of what was sent; `weights` and `buffers` share its keys out."""

    record: ArrayRecord
    arrays: Arrays
    weights: tuple[str, ...]
    buffers: tuple[str, ...]

    @classmethod
    def of(cls, record: ArrayRecord, buffer_names: Sequence[str] = ()) -> Self:
        """Read the server's own record. `buffer_names` are shell patterns of the floating arrays to set apart.

        Raises ValueError if an array is neither floating, integer nor boolean, or if none is a weight.
        """
        arrays = {name: read(array, tuple(array.shape), np.dtype(array.dtype)) for name, array in record.items()}
        for name, values in arrays.items():
            if values.dtype.kind not in "fiub" or (values.dtype.kind == "f" and values.dtype.itemsize > 8):
                raise ValueError(
                    f"array {name!r} is {values.dtype}: a model is floats up to float64, integers and bools"
                )
        weights = tuple(
            name
            for name, values in arrays.items()
            if values.dtype.kind == "f" and not any(fnmatchcase(name, pattern) for pattern in buffer_names)
        )
        if not weights:
            raise ValueError(f"none of the arrays sent ({', '.join(arrays) or 'no arrays'}) is a floating weight")
        return cls(record, arrays, weights, tuple(name for name in arrays if name not in weights))

    @property
    def kept_buffers(self) -> dict[str, NDArray[Any]]:
        """The buffers as they were sent."""
        return {name: self.arrays[name] for name in self.buffers}

    def read(self, record: ArrayRecord) -> dict[str, NDArray[Any]]:
        """A reply's arrays, matched by key, in the order sent. Raises BadArray, naming the array."""
        missing, extra = self.arrays.keys() - record.keys(), record.keys() - self.arrays.keys()
        if missing or extra:
            raise BadArray(f"other keys than sent:{_names(' missing', missing)}{_names(' extra', extra)}")
        read_arrays = {}
        for name, sent in self.arrays.items():
            try:
                read_arrays[name] = read(record[name], sent.shape, sent.dtype)
            except BadArray as problem:
                raise BadArray(f"array {name!r} {problem}") from None
        return read_arrays

    @cached_property
    def moderate(self) -> frozenset[str]:
        """The weights whose values sent are small enough for differences with others such to be finite."""
        return frozenset(name for name in self.weights if _moderate(self.arrays[name]))

    def fault(self, arrays: Arrays) -> str:
        """Which array of a reply holds NaN or Inf, itself or as an update, and how many; or an empty string."""
        with np.errstate(over="ignore", invalid="ignore"):  # a peer's numbers are judged, not warned about
            for name in self.weights:
                if name in self.moderate and _moderate(arrays[name]):
                    continue
                if bad := _count_bad(arrays[name], self.arrays[name]):
                    return f"array {name!r} holds {bad} NaN or Inf"
        return not_finite({name: arrays[name] for name in self.buffers})

    def updates(self, replies: Sequence[Arrays]) -> Shifted:
        """What several replies change: their weights minus those sent, as rows of which no copy is made."""
        weights = [{name: arrays[name] for name in self.weights} for arrays in replies]
        return Shifted(weights, {name: self.arrays[name] for name in self.weights})

    def update(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """What one reply changes: its weights minus those sent, in their dtype."""
        with np.errstate(over="ignore", invalid="ignore"):  # a peer's numbers are judged, not warned about
            return {name: np.asarray(arrays[name] - self.arrays[name]) for name in self.weights}

    def changed_by(self, update: Arrays, buffers: Arrays) -> ArrayRecord:
        """The model after an update of all weights, with these buffers, in the keys, order and dtypes sent."""

        def new(name: str) -> NDArray[Any]:
            return buffers[name] if name in buffers else self.arrays[name] + update[name]

        return ArrayRecord({name: Array(np.asarray(new(name))) for name in self.arrays})

    def offered(self, update: Arrays) -> ArrayRecord:
        """The model after an update, for a strategy to apply. Buffers do not move: optimisers leave them alone.

        Those that are not floating are float64: Flower's differential privacy multiplies arrays in place.
        """
        unmoved = self.kept_buffers
        record = self.changed_by(update, unmoved)
        record.update({n: Array(np.asarray(v, np.float64)) for n, v in unmoved.items() if v.dtype.kind != "f"})
        return record

    def restored(self, record: ArrayRecord, buffers: Arrays) -> ArrayRecord:
        """A strategy's result in the dtypes sent, with these buffers; names that were not sent stay as they are."""
        restored: dict[str, Array] = {}
        for name, array in record.items():
            if name in buffers:
                array = Array(np.asarray(buffers[name], self.arrays[name].dtype))
            elif name in self.arrays and array.dtype != str(self.arrays[name].dtype):
                array = Array(np.asarray(array.numpy(), self.arrays[name].dtype))
            restored[name] = array
        return ArrayRecord(restored)


def _names(label: str, names: set[str]) -> str:
    shown = sorted(repr(name[:60]) for name in names)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f"{label} {', '.join(shown[:3])}{more}" if shown else ""


def not_finite(arrays: Arrays) -> str:
    """Which of the floating arrays holds NaN or Inf and how many, or an empty string."""
    for name, values in arrays.items():
        if values.dtype.kind != "f":
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            # NaN and Inf always survive a sum, so one fast pass clears nearly every array.
            if np.isfinite(values.sum()):
                continue
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            return f"array {name!r} holds {bad} NaN or Inf"
    return ""


def _moderate(values: NDArray[Any]) -> bool:
    """Whether the sum of squares is finite: then so is each number, and each difference of two such. One fast pass."""
    flat = values.ravel(order="K")
    return values.dtype.itemsize > 2 and bool(np.isfinite(np.vdot(flat, flat)))


def _count_bad(values: NDArray[Any], less: NDArray[Any]) -> int:
    """How many of the differences are NaN or Inf in their dtype."""
    a, b = values.reshape(-1), less.reshape(-1)
    spans = range(0, a.size, CHUNK)
    return sum(int(np.count_nonzero(~np.isfinite(a[i : i + CHUNK] - b[i : i + CHUNK]))) for i in spans)
