"""CS+, clipping at the Byzantine weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from byzflow.operators import param
from byzflow.robustness import Bounds
from byzflow_gossip.reference import ROUNDING, Bounded, Floats, clip


@dataclass(frozen=True)
class CSPlus(Bounded):
    """Mixing of differences clipped so that twice the Byzantine weight is clipped. Needs n >= 2f + 1.

    Gaucher, Dieuleveut and Hendrikx, ICML 2025, https://arxiv.org/abs/2410.10418. The breakdown in b/mu2 is nearly
    the best that a rule can have. The extra `weights` is the node's row of W; equal ones if not given.
    """

    name: ClassVar[str] = "cs_plus"
    aliases: ClassVar[tuple[str, ...]] = ("cg_plus",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.10418"
    step: float = param("the paper's eta_c: how far to go", 1.0, gt=0)

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """They are of the graph, not of one node."""
        return Bounds(note="bears b/mu2 up to nearly the best possible, mu2 of the honest graph")

    def shares(self, r: Floats, w: Floats) -> Floats:
        """min(1, tau / r), tau the largest r_(k) with weight <= sum(w) - 2 b up to it; 0 if there is none."""
        b = self.borne(w)
        if b <= 0:
            return np.full_like(r, self.step)
        order = np.argsort(r, kind="stable")
        whole = np.cumsum(w[order]) <= w.sum() - 2 * b + min(ROUNDING, b)  # less than b itself, however small b is
        return self.step * clip(r, float(r[order][whole].max(initial=0.0)))
