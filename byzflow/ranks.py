"""What column rules are made of: means over ranks of a column, vectorised over the columns of a tile.

`RankMean`, `ClampedMean` and `NearestMean` are such means as data, so that compiled kernels can run them too; as
functions of a tile they are the definition. Both rank by the same comparator networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from byzflow.errors import ExtraError

WEIGHT_EPS = 1e-12  # shares of the whole weight below this are rounding
FEW = 64  # rows up to which a network ranks columns faster than a sort


@lru_cache(maxsize=256)
def network(n: int, low: int, high: int, run: int = 1) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    """(comparators, 3): Batcher's odd-even merge sort of n values, without what ranks low to high - 1 do not need.

    Runs of `run` values, a power of two, are sorted already. Each line is (row of the lower, row of the higher, 3 if
    both are needed, 1 the lower, 2 the higher).
    """
    pairs = []
    p = run
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                pairs += [
                    (i + j, i + j + k) for i in range(min(k, n - j - k)) if (i + j) // (2 * p) == (i + j + k) // (2 * p)
                ]
            k //= 2
        p *= 2
    needed = [low <= i < high for i in range(n)]
    kept = []
    for a, b in reversed(pairs):
        outputs = needed[a] + 2 * needed[b]
        if outputs:
            kept.append((a, b, outputs))
            needed[a] = needed[b] = True
    return np.array(kept[::-1], dtype=np.uint16).reshape(-1, 3)


def ranked(x: Tensor, low: int = 0, high: int | None = None) -> Tensor:
    """(n, b) -> (high - low, b): the values of ranks low to high - 1 of each column, all unless given; NaN as +inf."""
    high = len(x) if high is None else high
    if len(x) > FEW or x.requires_grad:  # a derivative that goes to one row of equal ones
        return torch.sort(x, dim=0).values[low:high]
    rows = list(x.nan_to_num(torch.inf, torch.inf, -torch.inf))
    for a, b, needed in network(len(x), low, high).tolist():
        lower, higher = rows[a], rows[b]
        if needed & 1:
            rows[a] = torch.minimum(lower, higher)
        if needed & 2:
            rows[b] = torch.maximum(lower, higher)
    return torch.stack(rows[low:high])


@dataclass(frozen=True)
class RankMean:
    """The mean of ranks low to high - 1 (from 0) of each column, summed in float64; NaN ranks last."""

    low: int
    high: int
    count: int = 0
    factor: float = 0.0
    code: ClassVar[int] = 1
    """The number of the rule in kernels.c."""

    def __call__(self, x: Tensor) -> Tensor:
        """(n, b) -> (b,) float64."""
        return ranked(x, self.low, self.high).to(torch.float64).mean(0)

    def ranks(self, n: int) -> tuple[int, int]:
        """The ranks, from the first to behind the last, that must be in their place."""
        return self.low, self.high


@dataclass(frozen=True)
class ClampedMean(RankMean):
    """The mean of each column with the values beyond ranks low to high - 1 set to the nearest of these."""

    code: ClassVar[int] = 2

    def __call__(self, x: Tensor) -> Tensor:
        """(n, b) -> (b,) float64."""
        inner = ranked(x, self.low, self.high).to(torch.float64)
        return (inner.sum(0) + self.low * inner[0] + (len(x) - self.high) * inner[-1]) / len(x)


@dataclass(frozen=True)
class NearestMean(RankMean):
    """The mean of each column's `count` values nearest to its mean of ranks low to high - 1; of a tie the lower."""

    code: ClassVar[int] = 3

    def __call__(self, x: Tensor) -> Tensor:
        """(n, b) -> (b,) float64."""
        column = ranked(x).to(torch.float64)
        pivot = column[self.low : self.high].mean(0)
        # the nearest values are neighbours in the ranked column: a window moves up while that brings it nearer
        nearer = pivot - column[: len(x) - self.count] > column[self.count :] - pivot
        window = nearer.sum(0) + torch.arange(self.count, device=x.device)[:, None]
        return column.gather(0, window).mean(0)

    def ranks(self, n: int) -> tuple[int, int]:
        """All of them."""
        return 0, n


@dataclass(frozen=True)
class Deviated(RankMean):
    """The mean of each column and `factor` times its standard deviation, of divisor n - `count`; ranks play no part."""

    code: ClassVar[int] = 4

    def __call__(self, x: Tensor) -> Tensor:
        """(n, b) -> (b,) float64."""
        y = x.to(torch.float64)
        mean = y.mean(0)
        return mean + self.factor * ((y - mean).square().sum(0) / (len(x) - self.count)).sqrt()

    def ranks(self, n: int) -> tuple[int, int]:
        """None."""
        return 0, 0


def median(n: int) -> RankMean:
    """The median of n values, the midpoint of two for even n."""
    return RankMean((n - 1) // 2, n // 2 + 1)


def middle(x: Tensor) -> Tensor:
    """(n, b) -> (b,): the median of each column, in float64."""
    return median(len(x))(x)


def one_each(weights: Tensor, x: Tensor) -> Tensor:
    """Weights that there are as many of as rows; ExtraError if a stage before has made more or fewer rows."""
    if len(weights) != len(x):
        raise ExtraError(f"{len(weights)} sample_weights for {len(x)} rows: an earlier stage changed their number")
    return weights


def weighted_middle(x: Tensor, weights: Tensor) -> Tensor:
    """(n, b) -> (b,): the value that halves the weights (n,) of each column, the midpoint where two do, in float64."""
    column, upto, _ = _by_weight(x, weights)
    half = upto[-1:] / 2
    lower = (upto < half * (1 - WEIGHT_EPS)).sum(0, keepdim=True)
    upper = (upto <= half * (1 + WEIGHT_EPS)).sum(0, keepdim=True).clamp(max=len(x) - 1)
    return torch.cat([column.gather(0, lower), column.gather(0, upper)]).mean(0)


def weighted_rank_mean(x: Tensor, weights: Tensor, trimmed: float) -> Tensor:
    """(n, b) -> (b,): the mean of each column after that much weight is cut from either end, in float64.

    A value on the edge of the cut counts with what is left of its weight.
    """
    column, upto, each = _by_weight(x, weights)
    total = float(weights.sum())
    left = upto.clamp(max=total - trimmed) - (upto - each).clamp(min=trimmed)
    left = torch.where(left > WEIGHT_EPS * total, left, 0.0)
    return (torch.where(left > 0, column, 0.0) * left).sum(0) / left.sum(0)


def _by_weight(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each column the ranked values, the weight up to and with each, and its own; (n, b) float64."""
    column, order = torch.sort(x.to(torch.float64), dim=0, stable=True)
    each = weights.to(x.device)[order]
    return column, each.cumsum(0), each
