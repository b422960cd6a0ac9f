"""The mean: no defence, and what every defence is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import Mixing
from byzflow.robustness import Bounds


@dataclass(frozen=True)
class Mean(Mixing):
    """The mean of the rows, weighted by `sample_weights` if given; one Byzantine row moves it anywhere."""

    name: ClassVar[str] = "mean"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "nothing"
    aliases: ClassVar[tuple[str, ...]] = ("average", "weighted_mean")
    shift_invariant: ClassVar[bool] = True

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """One Byzantine row is enough."""
        return Bounds(breakdown=0.0, note="one Byzantine row moves it anywhere")

    def weights(self, gram: Gram, *, sample_weights: Tensor | None = None) -> Tensor:
        """(n,): 1/n each, or the sample weights divided by their sum."""
        w = torch.ones(gram.n, dtype=torch.float64) if sample_weights is None else sample_weights
        return w / w.sum()
