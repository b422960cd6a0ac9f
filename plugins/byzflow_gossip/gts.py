"""Geometric trimmed sums: nearest-neighbour averaging on a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from byzflow.operators import param
from byzflow.robustness import Bounds
from byzflow_gossip.reference import ROUNDING, Bounded, Floats


@dataclass(frozen=True)
class GTS(Bounded):
    """Mixing without the farthest neighbours of the Byzantine weight, the last one split. Needs n >= 2f + 1.

    Gaucher, Dieuleveut and Hendrikx, ICML 2025, https://arxiv.org/abs/2410.10418. It drops the weight b exactly;
    their code drops the neighbour at the boundary whole. The extra `weights` is the node's row of W; equal ones if
    not given.
    """

    name: ClassVar[str] = "gts"
    aliases: ClassVar[tuple[str, ...]] = ("sparse_nna",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.10418"
    step: float = param("the paper's eta_c: how far to go", 1.0, gt=0)

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """They are of the graph, not of one node."""
        return Bounds(note="bears less b/mu2 than cs_plus, mu2 of the honest graph")

    def shares(self, r: Floats, w: Floats) -> Floats:
        """1 for the nearest of weight sum(w) - b together, 0 beyond, and what is left for the one between."""
        order = np.argsort(r, kind="stable")
        weight = w[order]
        left = np.clip(w.sum() - self.borne(w) - (np.cumsum(weight) - weight), 0.0, weight)
        left[left < ROUNDING] = 0.0  # what rounding leaves of a weight would let a row of 1e30 in
        share = np.zeros_like(r)
        share[order] = left / np.where(weight > 0, weight, 1.0)
        return self.step * share
