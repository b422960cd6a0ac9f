"""Krum and Multi-Krum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from byzflow.errors import SpecError
from byzflow.gram import Gram, smallest
from byzflow.operators import Mixing, faults, param
from byzflow.robustness import ROBUST_MEAN, Bounds, ratio


def krum_scores(squared_distances: Tensor, neighbors: int, power: int = 2) -> Tensor:
    """(n,): sum of distance^power to the `neighbors` nearest other rows; self is left out by index."""
    others = squared_distances.clone().fill_diagonal_(torch.inf)
    if power != 2:
        others = others ** (power / 2)
    nearest = np.sort(others.numpy(), axis=1)  # several times as fast as torch's
    return torch.from_numpy(nearest[:, :neighbors].sum(1))


@dataclass(frozen=True)
class Krum(Mixing):
    """The row whose n - f - 2 nearest others are closest. Needs n >= 2f + 3.

    Blanchard et al., NeurIPS 2017, https://arxiv.org/abs/1703.02757. ByzFL and ByzPy count n - f - 1 neighbours
    (`neighbors=n-f-1`); Garfield sums distances that are not squared (power=1), fedlib squares twice (power=4).
    """

    name: ClassVar[str] = "krum"
    paper: ClassVar[str] = "https://arxiv.org/abs/1703.02757"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "byzfl": {"neighbors": "n-f-1", "strict": False},
        "byzpy": {"neighbors": "n-f-1", "strict": False},
        "flower": {"strict": False},
        "garfield": {"neighbors": "n-f-1", "power": 1},
    }
    shift_invariant: ClassVar[bool] = True
    f: int = faults()
    neighbors: Literal["n-f-2", "n-f-1"] = param("nearest other rows that count", "n-f-2")
    power: Literal[1, 2, 4] = param("power of the distance that is summed", 2)
    strict: bool = param("if false, n >= 2f + 1 is enough as long as one neighbour counts", True)

    @property
    def min_senders(self) -> int:
        """2f + 3; 2f + 1 and one neighbour if not strict."""
        if self.strict:
            return 2 * self.f + 3
        return max(2 * self.f + 1, self.f + int(self.neighbors[-1]) + 1)

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """kappa = 6(1 + a), lambda = 1 + sqrt((n - f)/(n - 2f)), for n - f - 1 neighbours and squared distances."""
        breakdown = max(0, n - 3) / (2 * n)
        if self.neighbors != "n-f-1" or self.power != 2:
            return Bounds(breakdown=breakdown, note="proven for neighbors=n-f-1, power=2", reference=ROBUST_MEAN)
        lam = 1 + math.sqrt((n - f) / (n - 2 * f))
        return Bounds(6 * (1 + ratio(n, f)), lam, breakdown, "", ROBUST_MEAN)

    def scores(self, gram: Gram) -> Tensor:
        """(n,): the Krum scores."""
        count = gram.n - self.f - int(self.neighbors[-1])
        return krum_scores(gram.squared_distances, count, self.power)

    def weights(self, gram: Gram) -> Tensor:
        """1 on the row of least score."""
        return gram.mean_of(smallest(self.scores(gram), 1))


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the m rows of least Krum score, m = n - f - 2 unless given. Needs n >= 2f + 3.

    Blanchard et al., NeurIPS 2017, https://arxiv.org/abs/1703.02757. With neighbors=n-f-1, m is n - f.
    """

    name: ClassVar[str] = "multi_krum"
    aliases: ClassVar[tuple[str, ...]] = ("mkrum",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **Krum.presets,
        "flower": {"strict": False, "m": 1},
        "garfield": {"neighbors": "n-f-1", "power": 1, "m": "n-f-2"},
    }
    m: int | Literal["n-f-2", "n-f"] | None = param("rows to average, at most n - f; as many as neighbours", None, ge=1)

    def check(self, n: int) -> None:
        """m may not exceed n - f."""
        super().check(n)
        if self.averaged(n) > n - self.f:
            raise SpecError(f"{self} averages {self.averaged(n)} rows, more than n - f = {n - self.f}")

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """No constant is proven here."""
        return Bounds(breakdown=max(0, n - 3) / (2 * n), note="no constant is proven here")

    def averaged(self, n: int) -> int:
        """m for n rows."""
        if isinstance(self.m, int):
            return self.m
        rule = self.m or ("n-f-2" if self.neighbors == "n-f-2" else "n-f")
        return max(1, n - self.f - (2 if rule == "n-f-2" else 0))

    def weights(self, gram: Gram) -> Tensor:
        """1/m on the m rows of least score."""
        return gram.mean_of(smallest(self.scores(gram), self.averaged(gram.n)))
