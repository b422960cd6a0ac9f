"""Robust learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from byzflow.operators import CoordinateWise, param
from byzflow.robustness import Bounds
from byzflow_aggregators.sign_majority import votes


@dataclass(frozen=True)
class RLR(CoordinateWise):
    """The mean, negated in each coordinate where fewer than `threshold` more rows agree on its sign than do not.

    Ozdayi, Kantarcioglu and Gel, AAAI 2021, https://arxiv.org/abs/2007.03767. Against backdoors, which few rows push:
    the step is taken as it is where |sum of signs| >= threshold and backwards elsewhere. It bounds nothing: a huge
    row moves the mean anywhere.
    """

    name: ClassVar[str] = "rlr"
    aliases: ClassVar[tuple[str, ...]] = ("robust_learning_rate",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2007.03767"
    threshold: float = param("least |sum of signs| at which a coordinate's step is trusted", ge=0)

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """As the mean."""
        return Bounds(breakdown=0.0, note="one Byzantine row moves it anywhere")

    def columns(self, x: Tensor) -> Tensor:
        """The mean with its trusted or reversed sign."""
        mean = sum(x, start=x.new_zeros(x.shape[1], dtype=torch.float64)) / len(x)
        return torch.where(votes(x).abs() >= self.threshold, mean, -mean)
