"""ALIE and IPM with the factor that moves the actual defence most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from byzflow.layout import Flat
from byzflow.operators import param
from byzflow.rows import AnyRows, Rows
from byzflow_attacks.candidates import Candidates, Fitted, most
from byzflow_attacks.directions import StandardDeviation, column_vector


@dataclass(frozen=True)
class OptALIE(Fitted):
    """ALIE with the z, of either sign, that moves the defence `against` farthest from the honest mean.

    Shejwalkar and Houmansadr, NDSS 2021, fit attacks to a known defence; the search is ours. Pass the defence as
    `against` (a spec or an operator) and what it remembers as `against_state`; the search leaves that as it is. A
    defence that ends in a column rule is judged on a sample of coordinates. ByzFL tries 16 to 20 factors, of one sign,
    and advances the defence's state with each.
    """

    name: ClassVar[str] = "opt_alie"
    paper: ClassVar[str] = "https://doi.org/10.14722/ndss.2021.24498"
    limit: float = param("largest |z|", 20.0, gt=0)
    evaluations: int = param("factors to try", 200, ge=20)

    @property
    def min_senders(self) -> int:
        """2."""
        return 2

    def beside(self, rows: AnyRows) -> list[Rows]:
        """Their standard deviation."""
        return [column_vector(rows, StandardDeviation())]

    def worst(self, candidates: Candidates) -> list[Flat]:
        """mean - z std."""
        mean, slope = candidates.mean, -candidates.vector(0)
        unit = candidates.unit(slope)
        z = most(lambda z: candidates.damage(mean + z * slope), -self.limit, self.limit, unit, self.evaluations)
        return candidates.answers(mean + z * slope)


@dataclass(frozen=True)
class OptIPM(Fitted):
    """IPM with the tau, of either sign, that moves the defence `against` farthest from the honest mean.

    As opt_alie, along the mean itself: -tau times the mean.
    """

    name: ClassVar[str] = "opt_ipm"
    paper: ClassVar[str] = "https://doi.org/10.14722/ndss.2021.24498"
    limit: float = param("largest |tau|", 20.0, gt=0)
    evaluations: int = param("factors to try", 200, ge=20)

    def worst(self, candidates: Candidates) -> list[Flat]:
        """-tau mean. The search is finer where the row is near the mean: u = tau + 1 near 0."""
        mean = candidates.mean
        low, high = 1 - self.limit, 1 + self.limit
        u = most(lambda u: candidates.damage(mean - u * mean), low, high, candidates.unit(mean), self.evaluations)
        return candidates.answers(mean - u * mean)
