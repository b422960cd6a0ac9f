"""Bucketing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import PreAggregator, param, seeded
from byzflow.robustness import Bounds


@dataclass(frozen=True)
class Bucketing(PreAggregator):
    """The means of random buckets of s rows; the last bucket may be short.

    Karimireddy et al., ICLR 2022, https://arxiv.org/abs/2006.09365. f does not change: a rule behind it must be
    valid for ceil(n/s) rows. The order is drawn from (seed, round), or passed as `permutation` (n,).
    """

    name: ClassVar[str] = "bucketing"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "norms"
    paper: ClassVar[str] = "https://arxiv.org/abs/2006.09365"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"byzfl": {"s": 1}}
    shift_invariant: ClassVar[bool] = True
    permutation_equivariant: ClassVar[bool] = False
    s: int = param("rows in a bucket", 2, ge=1)
    seed: int = param("seed of the order", 0, ge=0)

    def out_rows(self, n: int) -> int:
        """ceil(n / s)."""
        return -(-n // self.s)

    def improve(self, rest: Bounds, n: int, f: int) -> Bounds:
        """The breakdown point shrinks by s; the variance too, in expectation over the order."""
        breakdown = None if rest.breakdown is None else rest.breakdown / self.s
        return Bounds(breakdown=breakdown, note="divides the variance by s in expectation; no worst-case kappa")

    def weights(self, gram: Gram, *, permutation: Tensor | None = None, round: int = 0) -> Tensor:
        """(ceil(n/s), n): one bucket a row."""
        if permutation is None:
            permutation = torch.randperm(gram.n, generator=seeded(self.seed, self.name, round))
        return torch.stack([gram.mean_of(bucket) for bucket in torch.split(permutation, self.s)])
