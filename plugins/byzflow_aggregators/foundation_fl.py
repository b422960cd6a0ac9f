"""FoundationFL: synthetic rows before a simple rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import CoordinateWise, Mixing, faults, param
from byzflow.ranks import RankMean, median
from byzflow.robustness import Bounds


@dataclass(frozen=True)
class Extreme(CoordinateWise):
    """The largest or smallest value of each coordinate; not a rule to use, but a place to measure from."""

    name: ClassVar[str] = "extreme"
    largest: bool = True

    def columns(self, x: Tensor) -> Tensor:
        """Of the finite values."""
        sign = 1 if self.largest else -1
        return sign * (sign * x).masked_fill(~torch.isfinite(x), -torch.inf).max(0).values

    def rule(self, n: int) -> RankMean:
        """The last rank or the first."""
        return RankMean(n - 1, n) if self.largest else RankMean(0, 1)


@dataclass(frozen=True)
class FoundationFL(Mixing, CoordinateWise):
    """Trimmed mean or median of the rows and m copies of the row farthest from both extremes. Needs n >= 2f + 1.

    Fang et al., NDSS 2025, https://arxiv.org/abs/2501.17381. The copied row has the largest minimum of its distances to
    the coordinate-wise maximum and minimum of all rows. m is floor(n/2) unless given; f values are trimmed per side of
    the n + m. Far Byzantine rows that differ set the extremes and can be the one that is copied: nothing bounds it.
    """

    name: ClassVar[str] = "foundation_fl"
    paper: ClassVar[str] = "https://arxiv.org/abs/2501.17381"
    kind: ClassVar[str] = "span, then coordinate"
    shift_invariant: ClassVar[bool] = True
    f: int = faults()
    base: Literal["trimmed_mean", "median"] = param("what is applied to rows and copies", "trimmed_mean")
    m: int | None = param("copies; floor(n/2) if none", None, ge=0, le=10_000)

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.f + 1

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """None."""
        return Bounds(breakdown=0.0, note="the row that is copied can be a Byzantine one, however far it lies")

    @property
    def pivots(self) -> Mapping[str, CoordinateWise]:
        """The corners that the rows are compared with."""
        return {"highest": Extreme(True), "lowest": Extreme(False)}

    def weights(self, gram: Gram) -> Tensor:
        """(n + m, n): every row, then the copies."""
        corners = [gram.squared_distances_to(gram.unit(gram.point(name))) for name in ("highest", "lowest")]
        inmost = torch.minimum(*corners)
        if gram.infinite is not None:
            inmost = inmost.masked_fill(gram.infinite, -1.0)
        copies = gram.unit(int(inmost.argmax()))[: gram.n].expand(gram.n // 2 if self.m is None else self.m, -1)
        return torch.cat([torch.eye(gram.n, dtype=torch.float64), copies])

    def rule(self, n: int) -> RankMean:
        """The rule on rows and copies, n of them."""
        return median(n) if self.base == "median" else RankMean(self.f, n - self.f)
