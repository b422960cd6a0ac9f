"""Reversed rows, far out or balanced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import Attack, Mixing, param


@dataclass(frozen=True)
class Reverse(Attack, Mixing):
    """Minus `scale` times the honest mean, far away.

    Garfield's attackers reverse each its own gradient: knowledge=own.
    """

    name: ClassVar[str] = "reverse"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "norms"
    scale: float = param("factor of the reversed mean", 100.0, gt=0)

    def weights(self, gram: Gram) -> Tensor:
        """(h,): -scale/h each."""
        return torch.full((gram.n,), -self.scale / gram.n, dtype=torch.float64)


@dataclass(frozen=True)
class ZeroSum(Attack, Mixing):
    """Minus h/f times the honest mean, so that the mean of all rows is 0: averaging stands still.

    From the code of "Robust collaborative learning with linear gradient overhead" (Farhadkhani et al., ICML 2023,
    https://arxiv.org/abs/2209.10931).
    """

    name: ClassVar[str] = "zero_sum"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "norms"
    aliases: ClassVar[tuple[str, ...]] = ("scaled_sign_flip",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2209.10931"

    def weights(self, gram: Gram, *, honest: int | None = None) -> Tensor:
        """(h,): -1/f each, as h/f times 1/h."""
        factor = (honest or gram.n) / max(1, self.f)
        return torch.full((gram.n,), -factor / gram.n, dtype=torch.float64)
