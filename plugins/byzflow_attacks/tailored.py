"""Attacks fitted to the defence: as far as it lets them in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from byzflow.errors import SpecError
from byzflow.layout import Flat
from byzflow.operators import param
from byzflow.rows import AnyRows, Rows
from byzflow_attacks.candidates import Candidates, Fitted
from byzflow_attacks.directions import Direction, Ones, column_vector, slope_weights, vectors_of


@dataclass(frozen=True)
class DynOpt(Fitted):
    """The honest mean plus gamma p, gamma as large as the defence `against` still selects all attackers' rows.

    Shejwalkar and Houmansadr, NDSS 2021. p is -std, -mean/||mean|| ("unit") or -sign(mean). Where the defence does not
    select rows (trimmed_mean, geometric_median) gamma is the one that moves it farthest. What the defence remembers
    is passed as `against_state`. The authors' search starts at gamma = 10 or 3; `limit` is relative to the spread of
    the honest rows, so that it means the same for every p and d.
    """

    name: ClassVar[str] = "dyn_opt"
    aliases: ClassVar[tuple[str, ...]] = ("agr_tailored",)
    paper: ClassVar[str] = "https://doi.org/10.14722/ndss.2021.24498"
    direction: Direction = param("the direction p", "std")
    limit: float = param("largest length of gamma p, in spreads of the honest rows around their mean", 20.0, gt=0)

    @property
    def min_senders(self) -> int:
        """2; 1 unless direction=std."""
        return 2 if self.direction == "std" else 1

    def beside(self, rows: AnyRows) -> list[Rows]:
        """What the direction needs."""
        return [column_vector(rows, rule) for rule in vectors_of(self.direction).values()]

    def worst(self, candidates: Candidates) -> list[Flat]:
        """mean + gamma p."""
        slope = (
            -candidates.vector(0) if candidates.vectors else slope_weights(candidates.gram, "unit")[: candidates.known]
        )
        return candidates.answers(candidates.strongest(candidates.mean, slope, self.limit))


@dataclass(frozen=True)
class HiddenVulnerability(Fitted):
    """The honest mean plus gamma in one coordinate, or in all: the largest gamma that the defence `against` selects.

    El Mhamdi, Guerraoui and Rouault, ICML 2018, https://arxiv.org/abs/1802.07927: in high dimension a row may be far
    off in one coordinate and still near in norm. Where the defence does not select rows, gamma is the one that moves
    it farthest.
    """

    name: ClassVar[str] = "hidden_vulnerability"
    paper: ClassVar[str] = "https://arxiv.org/abs/1802.07927"
    coordinate: int = param("the coordinate; -1 for all", -1, ge=-1)
    limit: float = param("largest deviation, in spreads of the honest rows around their mean", 20.0, gt=0)

    def beside(self, rows: AnyRows) -> list[Rows]:
        """A unit vector, or ones everywhere."""
        ones = column_vector(rows, Ones())
        if self.coordinate >= rows.layout.d:
            raise SpecError(f"{self}: coordinate must be below the number of coordinates, {rows.layout.d}")
        if self.coordinate >= 0:
            start = 0
            for leaf, values in zip(rows.layout.leaves, ones.sources[0], strict=True):
                places = torch.arange(start, start + leaf.numel, device=values.device)
                values.copy_(places == self.coordinate)
                start += leaf.numel
        return [ones]

    def worst(self, candidates: Candidates) -> list[Flat]:
        """mean + gamma times that vector."""
        return candidates.answers(candidates.strongest(candidates.mean, candidates.vector(0), self.limit))
