"""A little is enough."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from statistics import NormalDist
from typing import Any, ClassVar, Literal

from torch import Tensor

from byzflow.errors import SpecError, WeakAttack
from byzflow.operators import Attack, CoordinateWise, Operator, param
from byzflow.ranks import Deviated, RankMean

Z = float | Literal["quantile", "paper-v1"]


def quantile(z: Z, h: int, f: int) -> float:
    """The share of the normal distribution below z, for h honest rows and f attackers; z names a formula."""
    n = h + f
    missing = n // 2 + 1 - f
    return (h - missing) / h if z == "quantile" else (n - missing) / n


def fewest(z: Z, f: int, least: int) -> int:
    """The smallest number of honest rows, at least `least`, for which there is a z."""
    return next(h for h in count(least) if isinstance(z, float) or 0 < quantile(z, h, f) < 1)


def shift(operator: Operator, z: Z, h: int, f: int) -> float:
    """z for h honest rows and f attackers. Raises SpecError where a formula has no answer."""
    if isinstance(z, float):
        return z
    share = quantile(z, h, f)
    if not 0 < share < 1:
        raise SpecError(f"{operator}: {h} honest rows put the quantile at {share:g}, outside (0, 1): give z a number")
    return NormalDist().inv_cdf(share)


@dataclass(frozen=True)
class ALIE(Attack, CoordinateWise):
    """The honest mean shifted by z standard deviations in each coordinate: inside the spread, all on one side.

    Baruch et al., NeurIPS 2019, https://arxiv.org/abs/1902.06156. z is a number, or found from n and f:
    "quantile" is Phi^-1((n - f - s)/(n - f)) with s = floor(n/2) + 1 - f, "paper-v1" is Phi^-1((n - s)/n). With few
    attackers z comes out at 0 or below, which attacks little: a WeakAttack warning says so. The authors' code knows
    only the attackers' own rows: knowledge=colluders. ByzPy's `little` and others add z standard deviations instead
    (negative=false) or use ddof=0.
    """

    name: ClassVar[str] = "alie"
    aliases: ClassVar[tuple[str, ...]] = ("little", "a_little_is_enough")
    paper: ClassVar[str] = "https://arxiv.org/abs/1902.06156"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "byzfl": {"z": 1.5, "negative": False},
        "byzpy": {"z": "paper-v1", "ddof": 0, "negative": False},
        "garfield": {"z": 1.035},
        "paper": {"z": 1.5, "ddof": 0},
    }
    z: Z = param("shift in standard deviations", "quantile")
    negative: bool = param("below the mean; above it if false", True)
    ddof: Literal[0, 1] = param("divisor h - ddof of the variance", 1)

    @property
    def min_senders(self) -> int:
        """ddof + 1, more where the quantile would not lie in (0, 1)."""
        return fewest(self.z if self.knowledge == "omniscient" else 0.0, self.f, self.ddof + 1)

    def check(self, n: int) -> None:
        """Warn where the formula gives no attack."""
        super().check(n)
        if self.f and self.knowledge == "omniscient" and not isinstance(self.z, float) and self.shift(n) <= 0:
            message = (
                f"{self} is z = {self.shift(n):.2g} <= 0 with {n} honest rows: give z a number, such as alie(z=1.5)"
            )
            warnings.warn(message, WeakAttack, stacklevel=2)

    def shift(self, h: int) -> float:
        """z for h honest rows."""
        return shift(self, self.z, h, self.f)

    def rule(self, n: int) -> RankMean:
        """mean - z std."""
        z = self.shift(n)
        return Deviated(0, 0, self.ddof, -z if self.negative else z)

    def columns(self, x: Tensor, *, honest: int | None = None) -> Tensor:
        """mean - z std, in float64."""
        return self.rule(honest or len(x))(x)
