"""FLAME: cluster, clip, and add noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from byzflow.errors import SpecError
from byzflow.gram import Gram
from byzflow.layout import Flat
from byzflow.operators import Mixing, faults, param, seeded
from byzflow.ranks import middle
from byzflow_aggregators.clusters import smallest_component
from byzflow_aggregators.cosines import cosines
from byzflow_preaggregators.clipping import shrink

BLOCK = 1 << 16  # coordinates that get their noise together


@dataclass(frozen=True)
class FLAME(Mixing):
    """The mean of the majority's cluster by angle, clipped to the median norm, plus noise. Needs n >= 2f + 1.

    Nguyen et al., USENIX Security 2022, https://arxiv.org/abs/2101.02281. HDBSCAN with clusters of more than n/2 finds
    the tightest single-linkage cluster of a majority, which is computed exactly. The noise has standard deviation lam
    times the median norm; lam is sqrt(2 ln(1.25/delta))/epsilon if these are given. The rows are updates; pass the
    model that was sent out as `model` to compare the angles of whole models, as the authors do. The definition does
    not use f.
    """

    name: ClassVar[str] = "flame"
    paper: ClassVar[str] = "https://arxiv.org/abs/2101.02281"
    vectors: ClassVar[tuple[str, ...]] = ("model",)
    f: int | None = faults(default=None)
    lam: float = param("noise, relative to the median norm", 0.001, ge=0)
    epsilon: float | None = param("privacy budget that lam is found from, with delta", None, gt=0)
    delta: float | None = param("chance to exceed the budget", None, gt=0, lt=1)
    seed: int = param("seed of the noise", 0, ge=0)

    def __post_init__(self) -> None:
        """epsilon and delta come together."""
        super().__post_init__()
        if (self.epsilon is None) != (self.delta is None):
            raise SpecError("flame needs epsilon and delta together, or neither")

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.declared + 1

    @property
    def noise(self) -> float:
        """Standard deviation of the noise, relative to the median norm."""
        if self.epsilon is None or self.delta is None:
            return self.lam
        return math.sqrt(2 * math.log(1.25 / self.delta)) / self.epsilon

    def weights(self, gram: Gram) -> Tensor:
        """Equal on the admitted rows, times what clipping leaves."""
        products = gram.products[: gram.n, : gram.n]
        if "model" in gram.vectors:
            m = gram.point("model")
            with_model = gram.products[: gram.n, m]
            products = products + with_model[:, None] + with_model[None, :] + gram.products[m, m]
        admitted = smallest_component(1 - cosines(products), gram.n // 2 + 1)
        return gram.mean_of(admitted.nonzero().flatten()) * shrink(gram.squared_norms.sqrt(), _typical(gram))

    def finish(self, answer: Flat, gram: Gram, *, round: int = 0) -> None:
        """Add the noise, drawn from (seed, round)."""
        sigma = self.noise * _typical(gram)
        if not sigma:
            return
        generator, drawn = seeded(self.seed, self.name, round), torch.empty(0)  # the same for every dtype
        for leaf in answer:
            at = 0
            while at < leaf.numel():
                if not drawn.numel():  # whole blocks, so that how the vector is cut into leaves changes nothing
                    drawn = torch.randn(BLOCK, generator=generator) * sigma
                part = leaf[at : at + drawn.numel()]
                part += drawn[: part.numel()].to(part.device)
                at, drawn = at + part.numel(), drawn[part.numel() :]


def _typical(gram: Gram) -> float:
    return float(middle(gram.squared_norms.sqrt()[:, None]))
