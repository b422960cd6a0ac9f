"""Sign flipping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import Attack, Mixing, param


@dataclass(frozen=True)
class SignFlip(Attack, Mixing):
    """Minus the honest mean, times `scale`."""

    name: ClassVar[str] = "sign_flip"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "norms"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"byzpy": {"knowledge": "own"}}
    scale: float = param("factor of the reversed mean", 1.0, gt=0)

    def weights(self, gram: Gram) -> Tensor:
        """(h,): -scale/h each."""
        return torch.full((gram.n,), -self.scale / gram.n, dtype=torch.float64)
