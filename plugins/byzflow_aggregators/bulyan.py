"""Bulyan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from byzflow.gram import Gram, smallest
from byzflow.operators import CoordinateWise, Mixing, faults, param
from byzflow.ranks import NearestMean, median
from byzflow.robustness import Bounds
from byzflow_aggregators.krum import krum_scores


def iterated(squared_distances: Tensor, count: int, f: int) -> list[int]:
    """`count` rows, each of least Krum score among the rows that are left, in O(n^2) a pick.

    Each row's distances are sorted once; a picked row is then taken out of every line, which keeps it sorted.
    """
    others = squared_distances.clone().fill_diagonal_(-1).numpy()
    order = np.argsort(others, axis=1, kind="stable")[:, 1:]  # itself is first
    nearest = np.take_along_axis(others, order, axis=1)
    left, picked = np.arange(len(others)), []
    while len(picked) < count:
        best = int(nearest[:, : max(1, len(left) - f - 2)].sum(1).argmin())
        picked.append(int(left[best]))
        if len(left) == 1:
            break
        left = np.delete(left, best)
        order, nearest = np.delete(order, best, axis=0), np.delete(nearest, best, axis=0)
        stays = order != picked[-1]
        shape = (len(left), len(left) - 1)
        order, nearest = order[stays].reshape(shape), nearest[stays].reshape(shape)
    return picked


@dataclass(frozen=True)
class Bulyan(Mixing, CoordinateWise):
    """Krum picks n - 2f rows one by one; per coordinate the n - 4f values nearest to their median. Needs n >= 4f + 3.

    El Mhamdi, Guerraoui and Rouault, ICML 2018, https://arxiv.org/abs/1802.07927. After each pick the scores are
    computed again on the r rows left, with max(1, r - f - 2) neighbours. Flower picks all rows by the first
    scores (selection=oneshot), which often keeps other rows; FLPoison's and Garfield's second stage trims nothing.
    """

    name: ClassVar[str] = "bulyan"
    paper: ClassVar[str] = "https://arxiv.org/abs/1802.07927"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"flower": {"selection": "oneshot"}}
    kind: ClassVar[str] = "span, then coordinate"
    shift_invariant: ClassVar[bool] = True
    f: int = faults()
    selection: Literal["iterated", "oneshot"] = param("whether scores are computed again after a pick", "iterated")

    @property
    def min_senders(self) -> int:
        """4f + 3."""
        return 4 * self.f + 3

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """Only how many it bears."""
        return Bounds(breakdown=max(0, n - 3) / (4 * n), note="no constant is proven here")

    def weights(self, gram: Gram) -> Tensor:
        """(n - 2f, n): one picked row each."""
        count = gram.n - 2 * self.f
        distances = gram.squared_distances
        if self.selection == "oneshot":
            picked = smallest(krum_scores(distances, gram.n - self.f - 2), count).tolist()
        else:
            picked = iterated(distances, count, self.f)
        return torch.eye(gram.n, dtype=torch.float64)[picked]

    def rule(self, n: int) -> NearestMean:
        """The values around the middle of the picked rows."""
        return NearestMean(*median(n).ranks(n), n - 2 * self.f)
