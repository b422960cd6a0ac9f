"""Clipping to a fixed norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import PreAggregator, param
from byzflow.robustness import Bounds


def shrink(norms: Tensor, limit: Tensor | float) -> Tensor:
    """(n,): the factor min(1, limit / norm) that brings each row within the limit; 1 for a zero row."""
    return torch.where(norms > limit, torch.as_tensor(limit, dtype=torch.float64) / norms, 1.0)


@dataclass(frozen=True)
class Clipping(PreAggregator):
    """Each row scaled down to norm c at most.

    A fixed c breaks (f, kappa)-robustness where the rows' norms change over training; `arc` adapts.
    """

    name: ClassVar[str] = "clipping"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "norms"
    aliases: ClassVar[tuple[str, ...]] = ("static_clipping", "norm_clipping")
    c: float = param("largest norm that is left alone", 2.0, gt=0)

    def improve(self, rest: Bounds, n: int, f: int) -> Bounds:
        """A fixed threshold ends robustness."""
        return Bounds(breakdown=rest.breakdown, note="a fixed clipping threshold is not (f, kappa)-robust")

    def weights(self, gram: Gram) -> Tensor:
        """(n, n): diagonal."""
        return torch.diag(shrink(gram.squared_norms.sqrt(), self.c))
