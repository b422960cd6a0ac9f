"""Frames, honest and hostile, for the tests of the wire and for long campaigns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import msgspec
import numpy as np
import torch

from byzflow.actors.link import Frame
from byzflow.actors.wire import PREFIX, Limits, decode, encode, lengths, pieces, read_header
from byzflow.errors import WireError

MAGIC = b"bzf1"
SMALL = Limits(body=1 << 20)


def whole(frame: Frame, sequence: int = 0, limits: Limits = Limits()) -> bytes:  # noqa: B008
    """A frame as the bytes that cross."""
    head, bodies, offsets = encode(frame, sequence, limits)
    return head + b"".join(pieces(bodies, offsets, PREFIX.unpack(head[: PREFIX.size])[2]))


def parsed(data: bytes, limits: Limits = Limits()) -> Frame:  # noqa: B008
    """The frame that bytes begin with; a body that is too short is filled up. Raises WireError."""
    size, body = lengths(data[: PREFIX.size], limits)
    at = PREFIX.size + size
    header = read_header(data[PREFIX.size : at], body, limits)
    return decode(header, np.frombuffer(bytearray(data[at : at + body].ljust(body, b"\0")), np.uint8))


def refused(data: bytes, taken: int, limits: Limits = Limits()) -> bool:  # noqa: B008
    """If a link that has taken so many frames must end when these bytes come, and then the connection closes."""
    try:
        while data:
            if len(data) < PREFIX.size:
                return True
            size, body = lengths(data[: PREFIX.size], limits)
            if len(data) < PREFIX.size + size:
                return True
            header = read_header(data[PREFIX.size : PREFIX.size + size], body, limits)
            if header.sequence != taken or len(data) < PREFIX.size + size + body:
                return True
            at = PREFIX.size + size
            if header.kind:
                decode(header, np.frombuffer(bytearray(data[at : at + body]), np.uint8))
            taken, data = taken + 1, data[at + body :]
    except WireError:
        return True
    return False


def raw(header: Any, body: int = 0) -> bytes:
    """A prefix and whatever header, plain data or bytes."""
    text = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    return PREFIX.pack(MAGIC, len(text), body) + text


@cache
def _many(count: int) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode([["int8", [0], False, False]] * count))


def _told(k: int, arrays: Any, value: Any = None, body: int = 0) -> bytes:
    return raw([k, "call", 1, value, arrays], body)


def _array(k: int, dtype: str, shape: list[int]) -> bytes:
    return _told(k, [[dtype, shape, True, False]], body=64)


@cache
def _nested(code: int, depth: int) -> Any:
    """Extensions inside each other: each is cheap to send and must not be dear to open."""
    value: Any = [0, 0]
    for _ in range(depth):
        value = msgspec.msgpack.Ext(code, msgspec.msgpack.encode(value)[:60_000])
    return value


HONEST = (
    Frame("call", 7, ["m:f", [1, 2.5, "x", torch.ones(3)], {"a": np.arange(4)}]),
    Frame("create", 1, ["0.1.0", "name"]),
    Frame("result", 3, {"a": (1, [2, (3,)]), "b": b"123"}),
    Frame("deliver", 9, ["news", [torch.zeros(2, 3, dtype=torch.bfloat16), np.zeros((0, 2))], "alice"]),
)


def mutated(random: Random, data: bytes) -> bytes:
    """One to four changes: a byte, a bit, some bytes less, more, or twice."""
    out = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(out))
        match random.randrange(5):
            case 0:
                out[at] = random.randrange(256)
            case 1:
                out[at] ^= 1 << random.randrange(8)
            case 2:
                del out[at : at + random.randint(1, 8)]
            case 3:
                out[at:at] = random.randbytes(random.randint(1, 8))
            case 4:
                out[at:at] = out[at : at + random.randint(1, 16)]
        out = out or bytearray(b"\0")
    return bytes(out)


def _honest(random: Random, k: int) -> bytes:
    return whole(random.choice(HONEST), k)


# What a peer may send in the place of its frame number k, by what is wrong with it.
KINDS: dict[str, Callable[[Random, int], bytes]] = {
    "changed bytes": lambda r, k: mutated(r, _honest(r, k)),
    "random bytes": lambda r, k: r.randbytes(r.randint(16, 200)),
    "random header": lambda r, k: raw(r.randbytes(r.randint(0, 200)), r.choice((0, 64))),
    "cut off": lambda r, k: (data := _honest(r, k))[: r.randrange(1, len(data))],
    "endless header": lambda r, k: PREFIX.pack(MAGIC, r.randint((1 << 16) + 1, 2**32 - 1), 0),
    "endless body": lambda r, k: PREFIX.pack(MAGIC, 10, r.randint((1 << 30) + 1, 2**64 - 1)),
    "replay": lambda r, k: _honest(r, r.randrange(k) if k else 1),
    "from later": lambda r, k: _honest(r, k + r.randint(1, 1000)),
    "deep lists": lambda r, k: _told(k, [], msgspec.Raw(b"\x91" * r.choice((2000, 9000, 60_000)) + b"\xc0")),
    "deep extensions": lambda r, k: _told(k, [], _nested(r.choice((2, 3)), r.choice((1200, 1600, 2000)))),
    "huge shapes": lambda r, k: _array(k, "float32", [r.randint(2**20, 2**62)] * r.randint(2, 8)),
    "too long for the body": lambda r, k: _array(k, "int8", [r.randint(65, 10**6)]),
    "negative shapes": lambda r, k: _array(k, "int8", [-r.randint(1, 99)]),
    "wrong dtype": lambda r, k: _array(k, r.choice(("object", "O", "complex64", "<U8", "")), [8]),
    "many arrays": lambda r, k: _told(k, _many(r.choice((4097, 5000)))),
    "missing array": lambda r, k: _told(k, [], msgspec.msgpack.Ext(1, r.randbytes(2))),
    "unknown extension": lambda r, k: _told(k, [], msgspec.msgpack.Ext(r.randint(4, 99), r.randbytes(9))),
    "unhashable keys": lambda r, k: _told(k, [], msgspec.msgpack.Ext(3, b"\x91\x92\x90\x90")),
}


@dataclass(frozen=True)
class Hostile:
    """Bytes, and what is wrong with them."""

    kind: str
    data: bytes


def hostile(random: Random, sequence: int = 0) -> Hostile:
    """Something that a peer might send as its frame of this number; a third of it is an honest frame, changed."""
    kind = "changed bytes" if random.random() < 1 / 3 else random.choice(tuple(KINDS))
    return Hostile(kind, KINDS[kind](random, sequence))
