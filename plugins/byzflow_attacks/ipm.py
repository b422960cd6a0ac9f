"""Inner-product manipulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import Attack, Mixing, param


@dataclass(frozen=True)
class IPM(Attack, Mixing):
    """Minus the honest mean, times `tau`: turns the inner product of the aggregate and the gradient negative.

    Xie, Koyejo and Gupta, "Fall of empires", UAI 2019, https://arxiv.org/abs/1903.03936. Other libraries use
    a tau from 0.1 to 100.
    """

    name: ClassVar[str] = "ipm"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "nothing"
    aliases: ClassVar[tuple[str, ...]] = ("empire", "foe", "inner_product_manipulation")
    paper: ClassVar[str] = "https://arxiv.org/abs/1903.03936"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"byzpy": {"tau": 1.0}, "garfield": {"tau": 10.0}}
    tau: float = param("factor of the reversed mean", 2.0)

    def weights(self, gram: Gram) -> Tensor:
        """(h,): -tau/h each."""
        return torch.full((gram.n,), -self.tau / gram.n, dtype=torch.float64)
