"""Nearest-neighbour mixing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from byzflow.gram import Gram, nearest
from byzflow.operators import PreAggregator, faults
from byzflow.robustness import ROBUST_MEAN, Bounds


@dataclass(frozen=True)
class NNM(PreAggregator):
    """Each row becomes the mean of the n - f rows nearest to it, itself included. Needs n >= 2f + 1.

    Allouah et al., AISTATS 2023, https://arxiv.org/abs/2302.01772. Itself is included by index: with duplicates
    or rounding noise the smallest distance need not be its own.
    """

    name: ClassVar[str] = "nnm"
    aliases: ClassVar[tuple[str, ...]] = ("nearest_neighbor_mixing", "cenna")
    paper: ClassVar[str] = "https://arxiv.org/abs/2302.01772"
    shift_invariant: ClassVar[bool] = True
    f: int = faults()

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.f + 1

    def improve(self, rest: Bounds, n: int, f: int) -> Bounds:
        """kappa becomes 8f/(n - f) (kappa + 1): of the best order if kappa was O(1)."""
        kappa = None if rest.kappa is None else 8 * f / (n - f) * (rest.kappa + 1)
        return Bounds(kappa, None, rest.breakdown, rest.note, ROBUST_MEAN if kappa is not None else "")

    def weights(self, gram: Gram) -> Tensor:
        """(n, n): 1/(n - f) on each row's neighbours."""
        keep = gram.n - self.f
        distances = gram.squared_distances.clone().fill_diagonal_(-1.0)
        return nearest(distances, keep).double() / keep
