"""Reading an array that a peer sent, knowing what it must be before looking at it.

Flower sends each array as a .npy file. `Array.numpy()` believes the file's header and reserves the memory that it
asks for. Here nothing is reserved: the header must name the expected shape and dtype, the rest must be exactly
as long as those need, and the result is a read-only view of the bytes.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # bytes, numpy's own limit

# What np.save writes; anything else (structured types, other orders of keys) is refused without being evaluated.
HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=]?[?biufcmMOSUV]\d{0,4})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,20}(?:, ?\d{1,20})*)?,?) ?\),? ?\}\s*"
)


class BadArray(ValueError):
    """The bytes are not the array that was asked for; the message says why in a few words."""


def read(array: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array as a read-only view of its bytes, of exactly this shape and dtype (in native byte order).

    Raises BadArray if it is another array, or no array at all. Allocates nothing that the peer can choose.
    """
    if array.stype != "numpy.ndarray":
        raise BadArray(f"is serialised as {array.stype[:40]!r}, not as numpy.ndarray")
    start, header = _header(array.data)
    if header.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        raise BadArray(f"is {header.dtype}, {dtype} was sent")
    if header.shape != shape:
        raise BadArray(f"has shape {str(header.shape)[:60]}, {shape} was sent")
    needed = math.prod(shape) * dtype.itemsize
    if len(array.data) - start != needed:
        raise BadArray(f"holds {len(array.data) - start} bytes, its shape needs {needed}")
    if not needed:
        return np.empty(shape, dtype)
    flat = np.frombuffer(array.data, header.dtype, offset=start)
    values = flat.reshape(shape, order="F" if header.fortran else "C")
    return values if header.dtype.isnative else values.astype(dtype)


class _Header(NamedTuple):
    """What a .npy file says of the array in it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool


def _header(data: bytes) -> tuple[int, _Header]:
    """Where the numbers start, and the header's fields."""
    if not isinstance(data, bytes) or data[: len(MAGIC)] != MAGIC or len(data) < 10 or data[6] not in (1, 2):
        raise BadArray("is not a .npy file")
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if start > min(len(data), LONGEST_HEADER):
        raise BadArray("is cut off inside its header")
    return start, _fields(data[8 + width : start])


@lru_cache(maxsize=256)  # most arrays of a model, and all replies', share a few headers
def _fields(text: bytes) -> _Header:
    header = HEADER.fullmatch(text)
    if header is None:
        raise BadArray("has a header that np.save does not write")
    shape = tuple(int(size) for size in header["shape"].decode().split(",") if size.strip())
    dtype = np.dtype(object) if b"O" in header["descr"] else _dtype(header["descr"])
    return _Header(dtype, shape, header["fortran"] == b"True")


def _dtype(descr: bytes) -> np.dtype[Any]:
    try:
        return np.dtype(descr.decode())
    except (TypeError, ValueError):
        raise BadArray(f"has the unknown dtype {descr.decode()!r}") from None
