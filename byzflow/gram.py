"""The n x n world: everything a span rule may know of the rows, in float64, without their d coordinates.

The points of a `Gram` are the n rows, then the extra vectors of the call (a centre, a server gradient, each
row's momentum), then the origin. Inner products are taken relative to a reference that lies among the rows,
because a large common offset (model weights rather than updates) would drown the distances. Every combination is
therefore affine: weights over the points sum to 1, and what n weights lack of 1 stands on the origin, where it
costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from byzflow.engine.passes import gram_pass
from byzflow.errors import ExtraError, NonFiniteRows, RowsError
from byzflow.rows import AnyRows, Rows


@dataclass(frozen=True, eq=False)
class Gram:
    """Inner products of the points relative to a reference: `inner` (p, p) float64, p = n + extra vectors + 1."""

    inner: Tensor
    n: int
    vectors: Mapping[str, int] = field(default_factory=dict)  # how many points stand behind each name
    infinite: Tensor | None = None  # (n,) bool: rows kept although they hold NaN or Inf
    norms_only: bool = False  # only the diagonal was measured
    source: AnyRows | None = None  # the rows, for the few rules that look at some coordinates

    @property
    def origin(self) -> int:
        """Index of the origin among the points."""
        return self.inner.shape[0] - 1

    def points(self, name: str) -> range:
        """Indices of the extra vectors of a name among the points; ExtraError if the call had none."""
        if name not in self.vectors:
            raise ExtraError(f"the rule needs {name!r}: pass {name}=...")
        before = list(self.vectors).index(name)
        start = self.n + sum(list(self.vectors.values())[:before])
        return range(start, start + self.vectors[name])

    def point(self, name: str) -> int:
        """Index of the one extra vector of a name."""
        return self.points(name)[0]

    def affine(self, weights: Tensor) -> Tensor:
        """Weights (..., n) or (..., p - 1) completed to (..., p): what is missing to 1 goes to the origin."""
        full = weights.new_zeros((*weights.shape[:-1], self.inner.shape[0]))
        full[..., : weights.shape[-1]] = weights
        full[..., self.origin] = 1 - full[..., : self.origin].sum(-1)
        return full

    def mixed(self, mixing: Tensor) -> Gram:
        """The Gram of mixing @ rows, mixing (m, n) or (m, p - 1); extra vectors and origin stay."""
        lines = (mixing + 0.0).numpy()  # no -0.0, which differs from 0.0 in its bytes alone
        seen: dict[bytes, int] = {}
        which = torch.tensor([seen.setdefault(line.tobytes(), len(seen)) for line in lines])
        distinct = torch.from_numpy(np.array([np.frombuffer(line) for line in seen]))  # equal rows tie to the last bit
        others = torch.eye(self.inner.shape[0], dtype=torch.float64)[self.n :]
        full = torch.cat([self.affine(distinct), others])
        infinite = None
        if self.infinite is not None:
            infinite = (mixing[:, : self.n][:, self.infinite] != 0).any(1)
        inner = full @ self.inner @ full.T
        places = torch.cat([which, torch.arange(len(distinct), len(full))])
        inner = ((inner + inner.T) / 2)[places][:, places]
        return replace(self, inner=inner, n=mixing.shape[0], infinite=infinite, source=None)

    @cached_property
    def squared_distances(self) -> Tensor:
        """(n, n): ||x_i - x_j||^2, never negative, 0 on the diagonal, inf to a kept non-finite row."""
        self._whole()
        q = self.inner.diagonal()[: self.n]
        distances = (q[:, None] + q[None, :] - 2 * self.inner[: self.n, : self.n]).clamp_(min=0)
        if self.infinite is not None:
            distances[self.infinite, :] = torch.inf
            distances[:, self.infinite] = torch.inf
        return distances.fill_diagonal_(0)

    def squared_distances_to(self, weights: Tensor) -> Tensor:
        """(n,): squared distance of each row to the combination `weights` (n,), (p - 1,) or (p,)."""
        w = weights if weights.shape[-1] == self.inner.shape[0] else self.affine(weights)
        to_point = self.inner @ w
        distances = (self.inner.diagonal() - 2 * to_point + w @ to_point).clamp_(min=0)[: self.n]
        return distances if self.infinite is None else distances.masked_fill(self.infinite, torch.inf)

    @cached_property
    def squared_norms(self) -> Tensor:
        """(n,): ||x_i||^2, distances to the true origin."""
        origin = torch.zeros(self.inner.shape[0], dtype=torch.float64)
        origin[self.origin] = 1
        return self.squared_distances_to(origin)

    @cached_property
    def products(self) -> Tensor:
        """(p - 1, p - 1): true inner products <x_i, x_j> of the rows, then of the extra vectors."""
        self._whole()
        if self.infinite is not None and bool(self.infinite.any()):
            raise NonFiniteRows("inner products of rows that hold NaN or Inf: use nonfinite='reject'")
        o = self.origin
        to_origin = self.inner[:o, o]
        return self.inner[:o, :o] - to_origin[:, None] - to_origin[None, :] + self.inner[o, o]

    @property
    def d(self) -> int:
        """Coordinates of a row; RowsError where the inner products are all that is known."""
        return self._source.layout.d

    def coordinates(self, wanted: Tensor) -> Tensor:
        """(n, k): some coordinates of the rows, numbered from 0 through all leaves; 0 in non-finite rows."""
        values = self._source.pick(wanted)
        if self.infinite is not None:
            values[self.infinite.to(values.device)] = 0
        return values

    def part(self, wanted: Tensor) -> Gram:
        """The Gram of the rows as if they had only these coordinates."""
        inner, _ = gram_pass(Rows.of(self.coordinates(wanted)), [])
        return Gram(inner, self.n, {}, self.infinite)

    @property
    def _source(self) -> AnyRows:
        if self.source is None:
            raise RowsError("the rule looks at coordinates of the rows, and only their inner products are known here")
        return self.source

    def _whole(self) -> None:
        if self.norms_only:
            raise RuntimeError("the rule declares measures = 'norms', but asks for more: declare 'distances'")

    def unit(self, index: int) -> Tensor:
        """(p - 1,): the weights that pick one row or extra vector."""
        weights = torch.zeros(self.origin, dtype=torch.float64)
        weights[index] = 1
        return weights

    def mean_of(self, indices: Sequence[int] | Tensor) -> Tensor:
        """(n,): the weights of the mean of some rows."""
        chosen = torch.as_tensor(indices)
        weights = torch.zeros(self.n, dtype=torch.float64)
        weights[chosen] = 1 / chosen.numel()
        return weights


def smallest(values: Tensor, k: int) -> Tensor:
    """Indices of the k smallest entries of the last axis, ties by index (colluders send equal rows)."""
    return torch.sort(values, dim=-1, stable=True).indices[..., :k]


def nearest(distances: Tensor, k: int) -> Tensor:
    """(n, m) bool: the k (1 to m) smallest entries of each line, ties by index. As `smallest`, without sorting."""
    values = np.nan_to_num(distances.numpy(), nan=np.inf, posinf=np.inf)
    bound = np.partition(values, k - 1, axis=1)[:, k - 1 : k]
    below, ties = values < bound, values == bound
    return torch.from_numpy(below | (ties & (ties.cumsum(1) <= k - below.sum(1, keepdims=True))))
