"""Adaptive robust clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import PreAggregator, faults
from byzflow.robustness import Bounds
from byzflow_preaggregators.clipping import shrink


@dataclass(frozen=True)
class ARC(PreAggregator):
    """The floor(2f(n - f)/n) largest rows scaled down to the norm of the next one. Needs n >= 2f + 1.

    Allouah et al., ICLR 2025, https://arxiv.org/abs/2405.14432. The number of rows is found in integers: in
    floats it can be one short.
    """

    name: ClassVar[str] = "arc"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "norms"
    aliases: ClassVar[tuple[str, ...]] = ("adaptive_robust_clipping",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.14432"
    f: int = faults()

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.f + 1

    def improve(self, rest: Bounds, n: int, f: int) -> Bounds:
        """kappa grows by 2f/(n - 2f); the result is no longer than the longest honest row."""
        kappa = None if rest.kappa is None else rest.kappa + 2 * f / (n - 2 * f)
        return Bounds(kappa, None, rest.breakdown, rest.note, self.paper if kappa is not None else "")

    def weights(self, gram: Gram) -> Tensor:
        """(n, n): diagonal."""
        norms = gram.squared_norms.sqrt()
        clipped = 2 * self.f * (gram.n - self.f) // gram.n
        limit = norms.sort(descending=True).values[clipped]
        return torch.diag(shrink(norms, limit))
