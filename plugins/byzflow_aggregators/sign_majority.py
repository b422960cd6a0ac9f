"""The majority of signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from byzflow.operators import CoordinateWise, faults, param


@dataclass(frozen=True)
class SignMajority(CoordinateWise):
    """`scale` times the sign that most rows have in each coordinate, 0 for a tie. Needs n >= 2f + 1.

    signSGD with majority vote: Bernstein et al., ICLR 2019, https://arxiv.org/abs/1810.05291. Its length is
    scale sqrt(d) whatever the rows are. The definition does not use f: it is only checked.
    """

    name: ClassVar[str] = "sign_majority"
    aliases: ClassVar[tuple[str, ...]] = ("signsgd_mv", "majority_vote")
    paper: ClassVar[str] = "https://arxiv.org/abs/1810.05291"
    scale: float = param("size of every coordinate of the result", 1.0, gt=0)
    f: int | None = faults(default=None)

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.declared + 1

    def columns(self, x: Tensor) -> Tensor:
        """The sign of the sum of signs; no row has a share in it that could be told."""
        return self.scale * votes(x).sign()


def votes(x: Tensor) -> Tensor:
    """(n, b) -> (b,): the sum of the signs of each column, row by row, so that no second tile is made."""
    return sum((row.sign() for row in x.detach()), start=torch.zeros_like(x[0]))
