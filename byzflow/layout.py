"""What one row looks like: named leaves of some shape and dtype, and how an answer gets that form back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

HUGE = 1 << 21  # bytes of a huge page

Flat = list[Tensor]
"""An answer on its way: one flat tensor a leaf."""


class Span(NamedTuple):
    """Coordinates `start` to `stop` of leaf number `leaf`."""

    leaf: int
    start: int
    stop: int


@dataclass(frozen=True)
class Leaf:
    """One named array of a row."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class Layout:
    """The leaves of one row, where they are, and the kind in which the rows came."""

    leaves: tuple[Leaf, ...]
    device: torch.device
    arrays: bool = False  # rows came as numpy arrays
    stacked: bool = True  # rows came as one (n, ...) tensor or array
    total: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    """For a shard of longer rows: makes a sum over its coordinates the sum over all, on every shard at once."""

    @cached_property
    def d(self) -> int:
        """Coordinates of one row."""
        return sum(leaf.numel for leaf in self.leaves)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that tiles have: float64 if any leaf has it, else float32."""
        return torch.float64 if any(leaf.dtype == torch.float64 for leaf in self.leaves) else torch.float32

    def spans(self, width: int) -> Iterator[Span]:
        """Spans that cover all coordinates in steps of at most `width`, none across two leaves."""
        for k, leaf in enumerate(self.leaves):
            cuts = [*range(0, leaf.numel, width), leaf.numel]
            yield from (Span(k, a, b) for a, b in pairwise(cuts) if a < b)

    def only(self, span: Span) -> Layout:
        """The layout of these coordinates alone, a vector without a name."""
        size = span.stop - span.start
        return Layout((Leaf(None, (size,), self.leaves[span.leaf].dtype, size),), self.device, stacked=False)

    def everywhere(self, *sums: Tensor) -> list[Tensor]:
        """What was summed over these coordinates, or found in some of them (bool), for the whole rows."""
        if self.total is None:
            return [*sums]
        flat = self.total(torch.cat([each.double().flatten() for each in sums]))  # one message, however many
        parts = flat.split_with_sizes([each.numel() for each in sums])
        return [
            (part > 0 if each.dtype == torch.bool else part).view(each.shape)
            for each, part in zip(sums, parts, strict=True)
        ]

    def empty(self, count: int) -> list[Flat]:
        """Uninitialised room for `count` answers."""
        blocks = [_room(count, leaf, self.device) for leaf in self.leaves]
        return [[block[i] for block in blocks] for i in range(count)]

    def restore(self, answer: Flat) -> Any:
        """One answer in the kind of one row."""
        cast: Callable[[Tensor], Any] = (lambda t: t.numpy()) if self.arrays else (lambda t: t)
        shaped = [cast(flat.view(leaf.shape)) for flat, leaf in zip(answer, self.leaves, strict=True)]
        if self.leaves[0].name is None:
            return shaped[0]
        return {leaf.name: value for leaf, value in zip(self.leaves, shaped, strict=True)}

    def restore_all(self, answers: Sequence[Flat]) -> Any:
        """Several answers in the kind of the rows: an (m, ...) tensor or array, or a list of m rows."""
        if not self.stacked:
            return [self.restore(answer) for answer in answers]
        leaf = self.leaves[0]
        whole = _adjoining([answer[0] for answer in answers]) if answers else None
        if whole is not None:
            out = whole.view(len(answers), *leaf.shape)
            return out.numpy() if self.arrays else out
        out = torch.empty((len(answers), *leaf.shape), dtype=leaf.dtype, device=self.device)
        for row, answer in zip(out, answers, strict=True):
            row.copy_(answer[0].view(leaf.shape))
        return out.numpy() if self.arrays else out


def _adjoining(rows: Sequence[Tensor]) -> Tensor | None:
    """(m, numel): flat tensors that lie in one block in their order, as one, without a copy; None if they do not."""
    first = rows[0]
    step, begin = first.numel(), first.storage_offset()
    storage = first.untyped_storage().data_ptr()
    for i, row in enumerate(rows):
        if row.untyped_storage().data_ptr() != storage or row.storage_offset() != begin + i * step:
            return None
    return first.as_strided((len(rows), step), (max(1, step), 1))


def _room(count: int, leaf: Leaf, device: torch.device) -> Tensor:
    """(count, numel), one block: page by page, room costs more than what is written to it."""
    if device.type != "cpu" or not count * leaf.numel:
        return torch.empty(count, leaf.numel, dtype=leaf.dtype, device=device)
    # numpy asks for huge pages from 4 MiB on, torch does not; only whole ones that start where one can are given
    size = count * leaf.numel * leaf.dtype.itemsize
    room = np.empty(max(size + HUGE, 2 * HUGE) if size >= HUGE else size, dtype=np.uint8)
    block = room[-room.ctypes.data % HUGE :][:size] if len(room) > size else room
    return torch.from_numpy(block).view(leaf.dtype).view(count, leaf.numel)
