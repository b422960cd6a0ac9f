"""What was received is given back at once when it is dropped, without waiting for the collector of cycles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from byzflow.actors.buffers import LEAST, Buffers
from byzflow.actors.link import Frame
from byzflow.actors.wire import PREFIX, Limits, decode, encode, read_header


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_a_frame_that_is_dropped_keeps_nothing() -> None:
    value = [torch.ones(3), (np.ones(2), {"a": [torch.ones(1)]})]
    head, bodies, offsets = encode(Frame("call", 1, value), 0, Limits())
    size = PREFIX.unpack(head[: PREFIX.size])[2]
    body = np.empty(size, np.uint8)
    for each, at in zip(bodies, offsets, strict=True):
        body[at : at + each.nbytes] = np.frombuffer(each, np.uint8)
    seen = weakref.ref(body)
    frame = decode(read_header(head[PREFIX.size :], size, Limits()), body)
    del body
    assert seen() is not None
    del frame
    assert seen() is None


def test_a_buffer_comes_back_when_its_last_view_goes() -> None:
    buffers = Buffers()
    array = buffers.take(LEAST)
    where, tensor = array.ctypes.data, torch.from_numpy(array[64:128]).view(torch.float32)
    del array
    assert buffers.free == 0
    del tensor
    assert buffers.free == LEAST
    assert buffers.take(LEAST).ctypes.data == where


def test_two_that_live_are_two() -> None:
    buffers = Buffers()
    one, other = buffers.take(LEAST), buffers.take(LEAST)
    one[:], other[:] = 1, 2
    assert one.min() == one.max() == 1


def test_what_waits_is_bounded_and_fits() -> None:
    buffers = Buffers(keep=3 * LEAST)
    taken = [buffers.take(LEAST) for _ in range(5)]
    del taken
    assert buffers.free == 3 * LEAST
    assert buffers.take(3 * LEAST).nbytes == 3 * LEAST  # none of those
    assert buffers.free == 3 * LEAST


@pytest.mark.parametrize("size", [0, 1, LEAST - 1])
def test_small_ones_are_not_kept(size: int) -> None:
    buffers = Buffers()
    assert buffers.take(size).nbytes == size
    assert buffers.free == 0


def test_a_large_one_is_not_held_by_a_small_array() -> None:
    buffers = Buffers()
    large = buffers.take(4 * LEAST)
    del large
    assert buffers.take(LEAST).nbytes == LEAST
    assert buffers.free == 5 * LEAST
