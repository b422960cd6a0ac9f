"""Memory that arrays from other machines are received into, used again once nothing refers to what came.

Fresh memory is the dearest part of receiving a large array: the system has to find and clear every page of it.
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import finalize

import numpy as np

LEAST = 1 << 20  # bytes: what is smaller comes from the heap as fast
KEEP = 1 << 28  # bytes of free buffers that wait to be used again, in the whole process

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Buffers:
    """Buffers of one process. They may be taken and given back on any thread."""

    def __init__(self, keep: int = KEEP) -> None:
        """`keep`: bytes of free buffers at most; those that wait for longest go first."""
        self.keep = keep
        self._free: list[Bytes] = []  # the longest free first
        self._lock = threading.RLock()  # a buffer may come back while one is taken: collection runs anywhere

    @property
    def free(self) -> int:
        """Bytes that wait to be used again."""
        with self._lock:
            return sum(each.nbytes for each in self._free)

    def take(self, size: int) -> Bytes:
        """`size` bytes, whatever they hold; free again when the array and all views of it are gone."""
        if size < LEAST:
            return np.empty(size, np.uint8)
        with self._lock:
            fits = [k for k, each in enumerate(self._free) if size <= each.nbytes <= 2 * size]
            best = min(fits, key=lambda k: self._free[k].nbytes, default=None)
            memory = None if best is None else self._free.pop(best)
        if memory is None:
            memory = np.empty(size, np.uint8)  # not torch.empty: numpy asks for huge pages
        lease = np.frombuffer(memory.data, np.uint8, size)  # the base of every view of it
        finalize(lease, self._back, memory).atexit = False
        return lease

    def _back(self, memory: Bytes) -> None:
        with self._lock:
            self._free.append(memory)
            while self.free > self.keep:
                self._free.pop(0)
