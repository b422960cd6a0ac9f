"""Memory that two processes share, from anonymous file descriptors: no names, nothing left after a kill.

The sender owns the slots and reuses them; a slot is free again once nothing at the receiver's end refers to it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import numpy as np
import torch

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
ALIGN = 64  # bytes: vector loads do not cross lines
SMALLEST = 1 << 16
KEEP = 1 << 28  # bytes of free slots that wait to be used again


@dataclass
class Slot:
    """A mapped piece of shared memory."""

    number: int
    memory: Bytes
    fd: int | None  # None: the other end has it mapped, and it is not needed any more
    busy: bool = False

    @property
    def size(self) -> int:
        """In bytes."""
        return self.memory.size

    def close(self) -> None:
        """Close its descriptor."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def mapped(fd: int) -> Bytes:
    """All of a file in memory, for as long as somebody refers to it. No descriptor stays open, as with mmap's."""
    size = os.fstat(fd).st_size
    memory: Bytes = torch.from_file(f"/proc/self/fd/{fd}", shared=True, size=size, dtype=torch.uint8).numpy()
    return memory


def places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where buffers of these sizes lie in a slot, one after the other and aligned, and where they end."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGN) * ALIGN
    return offsets, end


class Arena:
    """The slots of one sender."""

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self._next = 0

    def place(self, buffers: Sequence[memoryview]) -> tuple[Slot, list[int]]:
        """Copy the buffers into a slot, the smallest free one or a new one; returns where each begins."""
        offsets, total = places([buffer.nbytes for buffer in buffers])
        fits = [slot for slot in self.slots.values() if not slot.busy and slot.size >= total]
        slot = min(fits, key=lambda each: each.size, default=None) or self._new(total)
        slot.busy = True
        for buffer, offset in zip(buffers, offsets, strict=True):
            source = np.frombuffer(buffer, np.uint8)
            slot.memory[offset : offset + source.size] = source
        return slot, offsets

    def free(self, number: int) -> bool:
        """The receiver is done with a slot; true if it goes back to the system, and the receiver is to forget it."""
        slot = self.slots[number]
        slot.busy = False
        if sum(each.size for each in self.slots.values() if not each.busy) <= KEEP:
            return False
        self._drop(slot)
        return True

    def close(self) -> None:
        """Give all slots back; the receiver's own mappings stay until it drops them."""
        for slot in tuple(self.slots.values()):
            self._drop(slot)

    def _new(self, size: int) -> Slot:
        size = max(SMALLEST, 1 << (size - 1).bit_length() if size < KEEP else -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        fd = os.memfd_create("byzflow", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            memory = mapped(fd)
        except BaseException:
            os.close(fd)
            raise
        self._next += 1
        slot = self.slots[self._next] = Slot(self._next, memory, fd)
        return slot

    def _drop(self, slot: Slot) -> None:
        del self.slots[slot.number]
        slot.close()  # the mapping goes with its last reference


class Mirror:
    """The same slots, seen by the receiver."""

    def __init__(self, done: Callable[[int], Any]) -> None:
        """`done(number)` is called, on any thread, once nothing here refers to what a slot held."""
        self._memory: dict[int, Bytes] = {}
        self._done = done

    def map(self, number: int, fd: int) -> None:
        """Take in a new slot; the descriptor is closed."""
        try:
            self._memory[number] = mapped(fd)
        finally:
            os.close(fd)

    def views(self, number: int, spans: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The buffers (offset, size) of a slot, in place; the slot is done when all of them are gone."""
        lease = np.frombuffer(self._memory[number].data, np.uint8)  # no view of numpy's, whose views refer past it
        finalize(lease, self._done, number).atexit = False
        return [lease[offset : offset + size].data for offset, size in spans]

    def forget(self, number: int) -> None:
        """The sender gave a slot back."""
        self._memory.pop(number, None)

    def close(self) -> None:
        """Drop all mappings that nothing refers to."""
        self._memory.clear()
