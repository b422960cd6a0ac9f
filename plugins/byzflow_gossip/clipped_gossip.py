"""ClippedGossip, self-centred clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from byzflow.operators import param
from byzflow.robustness import Bounds
from byzflow_gossip.reference import ROUNDING, Bounded, Floats, clip


@dataclass(frozen=True)
class ClippedGossip(Bounded):
    """Mixing of differences from the own row, each clipped to length tau. Needs n >= 2f + 1.

    He, Karimireddy and Jaggi, 2022, https://arxiv.org/abs/2202.01545. Without `tau` it is adaptive: from the nearest
    neighbours S whose weight is all but the Byzantine one, tau^2 = sum_S w_j r_j^2 / b. Their code takes the second
    largest distance, whatever b is. The extra `weights` is the node's row of W; equal ones if not given.
    """

    name: ClassVar[str] = "clipped_gossip"
    aliases: ClassVar[tuple[str, ...]] = ("scc", "scclip")
    paper: ClassVar[str] = "https://arxiv.org/abs/2202.01545"
    tau: float | None = param("length to clip to, in the unit of the rows' norm; none: adaptive", None, ge=0)

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """They are of the graph, not of one node."""
        return Bounds(note="max b <= c gamma^2, gamma the spectral gap of the honest graph")

    def shares(self, r: Floats, w: Floats) -> Floats:
        """min(1, tau / r)."""
        return clip(r, self.adaptive(r, w) if self.tau is None else self.tau)

    def adaptive(self, r: Floats, w: Floats) -> float:
        """Tau from the nearest neighbours of weight sum(w) - b or just more; inf if b is 0."""
        b = self.borne(w)
        if b <= 0:
            return np.inf
        order = np.argsort(r, kind="stable")
        weight = w[order]
        needed = np.cumsum(weight) - weight < w.sum() - b - ROUNDING  # what lies before one is not enough yet
        return float(np.sqrt((weight[needed] * r[order][needed] ** 2).sum()) / np.sqrt(b))
