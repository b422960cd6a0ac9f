"""Random coordinates, spread evenly over all layers."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(d: int, count: int, generator: torch.Generator, start: int = 0, stop: int | None = None) -> Tensor:
    """Different coordinates of d in rising order: one at random of each of `count` stretches of equal length.

    Each coordinate is as likely as any other, and no layer is left out by chance. Those of stretches start to
    stop - 1, all unless given: a large sample is drawn and used piece by piece.
    """
    edges = torch.arange(start, (count if stop is None else min(stop, count)) + 1) * d // count
    offset = torch.rand(len(edges) - 1, generator=generator, dtype=torch.float64) * edges.diff()
    return edges[:-1] + offset.long()
