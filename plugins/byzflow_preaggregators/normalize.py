"""Normalising every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import PreAggregator


@dataclass(frozen=True)
class Normalize(PreAggregator):
    """Each row scaled to norm 1; a zero row stays zero."""

    name: ClassVar[str] = "normalize"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "norms"

    def weights(self, gram: Gram) -> Tensor:
        """(n, n): diagonal."""
        norms = gram.squared_norms.sqrt()
        return torch.diag(torch.where(norms > 0, 1 / norms, 0.0))
