"""Frames as bytes, for peers that are not trusted: a fixed prefix, a small header of plain data, raw arrays.

    prefix   magic, length of the header, length of the body                                     16 bytes
    header   sequence number, kind, number, value, and dtype and shape of each array      at most 64 KB
    body     the arrays one after the other, each from a multiple of 64 bytes on

Nothing is allocated for what a peer sends before its sizes were checked, and nothing of it is ever executed: a value
is None, a bool, a number, words, bytes, arrays and tensors, and lists, tuples and mappings of these.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import msgspec
import numpy as np
import torch

from byzflow.actors.arena import places
from byzflow.actors.link import Frame
from byzflow.errors import WireError

MAGIC = b"bzf1"
PREFIX = struct.Struct(">4sIQ")
DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ARRAY, TUPLE, MAPPING = 1, 2, 3  # extension codes of the header
MOST = 4096  # arrays; told to the decoder, which then makes none of too many
ROWS = 1 << 16  # of an array without bytes: who goes through them pays for each, and who sent them paid for none
NESTED = 100  # values inside values: opening a thousand costs milliseconds and ends in a RecursionError


@dataclass(frozen=True)
class Limits:
    """What one frame may hold. A body that is longer than `body` bytes is refused before a byte of it is read."""

    header: int = 1 << 16
    body: int = 1 << 30
    arrays: int = MOST
    dims: int = 8


class Array(msgspec.Struct, forbid_unknown_fields=True, array_like=True, frozen=True, gc=False):
    """What is said of one array before its bytes come."""

    dtype: str
    shape: list[int]
    tensor: bool
    requires_grad: bool = False

    @property
    def nbytes(self) -> int:
        """Its size, in Python's numbers, which do not overflow."""
        return math.prod(self.shape) * int(DTYPES[self.dtype].itemsize)


class Header(msgspec.Struct, forbid_unknown_fields=True, array_like=True, frozen=True):
    """All of a frame but its arrays."""

    sequence: int
    kind: str
    number: int
    value: msgspec.Raw
    arrays: Annotated[list[Array], msgspec.Meta(max_length=MOST)]


_decoder = msgspec.msgpack.Decoder(Header)


def encode(frame: Frame, sequence: int, limits: Limits) -> tuple[bytes, list[memoryview], list[int]]:
    """Prefix and header as bytes, the arrays, and where each of these begins in the body.

    Raises WireError for a value that cannot cross, or is larger than the limits.
    """
    arrays: list[Array] = []
    bodies: list[memoryview] = []
    try:
        value = msgspec.Raw(msgspec.msgpack.encode(_plain(frame.body, arrays, bodies)))
        header = msgspec.msgpack.encode(Header(sequence, frame.kind, frame.number, value, arrays))
    except (TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"this cannot cross to another machine: {error}") from None
    offsets, end = places([body.nbytes for body in bodies])
    _within(len(header), limits.header, "bytes of header (long lists and words belong into arrays)")
    _within(len(arrays), limits.arrays, "arrays")
    _within(max((len(array.shape) for array in arrays), default=0), limits.dims, "dimensions")
    _within(end, limits.body, "bytes of arrays")
    for array in arrays:
        _bounded(array, limits)
    return PREFIX.pack(MAGIC, len(header), end) + header, bodies, offsets


def lengths(prefix: bytes | bytearray, limits: Limits) -> tuple[int, int]:
    """Of header and body, from a prefix. Raises WireError."""
    magic, header, body = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise WireError("the bytes do not begin with a frame: another program, or another version of the wire")
    _within(header, limits.header, "bytes of header")
    _within(body, limits.body, "bytes of arrays")
    return header, body


def read_header(data: bytes | memoryview, body: int, limits: Limits) -> Header:
    """The header, if it can be true of a body of this length. Raises WireError, and nothing else."""
    try:
        header = _decoder.decode(data)
        _within(len(header.arrays), limits.arrays, "arrays")
        for array in header.arrays:
            if array.dtype not in DTYPES:
                raise WireError(f"an array of dtype {array.dtype[:20]!r}; known: {', '.join(DTYPES)}")
            _within(len(array.shape), limits.dims, "dimensions")
            if any(size < 0 for size in array.shape):
                raise WireError(f"an array of shape {array.shape}")
            _bounded(array, limits)
        if places([array.nbytes for array in header.arrays])[1] != body:
            raise WireError("the arrays are not as long as the body")
    except WireError:
        raise
    except Exception as error:  # msgspec also lets UnicodeDecodeError and RecursionError through
        raise WireError(f"a header that does not read: {type(error).__name__}") from None
    return header


def decode(header: Header, body: np.ndarray[Any, Any]) -> Frame:
    """The frame; its arrays lie in `body`, which is not copied. Raises WireError."""
    offsets, _ = places([array.nbytes for array in header.arrays])
    try:
        arrays = [_array(each, body[at : at + each.nbytes]) for each, at in zip(header.arrays, offsets, strict=True)]
        value = _value(header.value, arrays)
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"a value that does not read: {type(error).__name__}") from None
    if arrays and _arrays_in(value) != len(arrays):  # any one keeps the memory of all
        raise WireError("the value does not hold all of the arrays")
    return Frame(header.kind, header.number, value)


def _value(data: Any, arrays: list[Any], depth: int = 0) -> Any:
    """What `_plain` made plain. No closure that knows itself: it would keep the arrays until the collector comes."""
    return msgspec.msgpack.decode(data, ext_hook=partial(_extension, arrays, depth))


def _extension(arrays: list[Any], depth: int, code: int, data: memoryview) -> Any:
    if code == ARRAY:
        return arrays[int.from_bytes(data, "big")]
    if code in (TUPLE, MAPPING):
        _within(depth + 1, NESTED, "values inside each other")
        inner = _value(data, arrays, depth + 1)
        return tuple(inner) if code == TUPLE else dict(inner)
    raise WireError(f"extension {code} is not known")


def _arrays_in(value: Any) -> int:
    """How many different ones it holds."""
    found: set[int] = set()
    rest = [value]
    while rest:
        each = rest.pop()
        if isinstance(each, torch.Tensor | np.ndarray):
            found.add(id(each))
        if isinstance(each, dict):
            rest += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            rest += each
    return len(found)


def _plain(value: Any, arrays: list[Array], bodies: list[memoryview], depth: int = 0) -> Any:
    """The value with extensions in the place of what msgpack does not have."""
    if depth > NESTED:
        raise TypeError(f"more than {NESTED} values inside each other")
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, torch.Tensor):
        if value.dtype not in NAMES or value.layout != torch.strided:
            raise TypeError(f"a tensor of {value.dtype}, {value.layout}")
        flat = value.detach().cpu().contiguous().reshape(-1)
        arrays.append(Array(NAMES[value.dtype], list(value.shape), True, value.requires_grad))
        bodies.append(flat.view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray):
        if value.dtype.name not in DTYPES or not value.dtype.isnative:
            raise TypeError(f"an array of {value.dtype}")
        arrays.append(Array(value.dtype.name, list(value.shape), False))
        bodies.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif isinstance(value, np.generic):
        return value.item()
    elif isinstance(value, Mapping):
        inner = ([_plain(part, arrays, bodies, depth + 1) for part in pair] for pair in value.items())
        return msgspec.msgpack.Ext(MAPPING, msgspec.msgpack.encode(list(inner)))
    elif isinstance(value, list | tuple):
        items = [_plain(each, arrays, bodies, depth + 1) for each in value]
        return items if isinstance(value, list) else msgspec.msgpack.Ext(TUPLE, msgspec.msgpack.encode(items))
    else:
        raise TypeError(f"a {type(value).__name__}")
    return msgspec.msgpack.Ext(ARRAY, (len(arrays) - 1).to_bytes(2, "big"))


def _array(array: Array, data: np.ndarray[Any, Any]) -> Any:
    if array.dtype == "bool":  # bytes other than 0 and 1 are no truth values
        data = data != 0
    if not array.tensor:
        return data.view(array.dtype).reshape(array.shape)
    dtype = DTYPES[array.dtype]
    flat = torch.from_numpy(data).view(dtype) if data.size else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(array.shape)
    return tensor.requires_grad_() if array.requires_grad and dtype.is_floating_point else tensor


def _within(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise WireError(f"{size} {what}; the limit is {limit}")


def _bounded(array: Array, limits: Limits) -> None:
    """An array that is empty must not be endless in its other dimensions."""
    if 0 in array.shape:
        _within(math.prod(array.shape[: array.shape.index(0)]), ROWS, "rows of an empty array")
        _within(math.prod(size or 1 for size in array.shape), limits.body, "columns of an empty array")


def pieces(bodies: Sequence[memoryview], offsets: Sequence[int], end: int) -> list[memoryview]:
    """The body in order, with what fills up each array to the place of the next."""
    out: list[memoryview] = []
    for body, at, after in zip(bodies, offsets, [*offsets, end][1:], strict=True):
        out.append(body)
        if gap := after - at - body.nbytes:
            out.append(memoryview(bytes(gap)))
    return out
