"""What the rules of gossip share: y_i + sum_j w_ij s_j (y_j - y_i), with a share s_j, 0 to 1, for each neighbour.

The w_ij are the extra `weights`, (n,) in the order of the rows, the own one's among them, as `Weights.row` gives it;
without it each row weighs 1/n, which is Metropolis-Hastings where all degrees are equal. A neighbour whose row holds
NaN or Inf counts as one that sent the own row: its weight stays there, and the other weights do not change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from byzflow.errors import ExtraError, SpecError
from byzflow.gram import Gram
from byzflow.operators import Mixing, faults, param
from byzflow.rows import AnyRows

Floats = NDArray[np.float64]
LOST = 1e-9
"""Of the squared sizes of two rows: if their squared distance is less, rounding has eaten much of it. The sizes are
relative to a row in the middle, and that one is a liar's where light liars are most of the rows."""
AT_ONCE = 1 << 16  # coordinates that are measured again
ROUNDING = 1e-6  # of sums of weights that are about 1, and may have been float32


@dataclass(frozen=True)
class FromReference(Mixing):
    """A rule that moves the row of `reference_index`; a subclass says how much of each difference counts.

    `absent` counts neighbours that sent nothing usable: like rejected rows, they count as copies of the own one.
    """

    shift_invariant: ClassVar[bool] = True
    permutation_equivariant: ClassVar[bool] = False
    reference_index: int = param("the own row", 0, ge=0, kw_only=True)
    absent: int = param("neighbours without a row", 0, ge=0, kw_only=True)

    @property
    def min_senders(self) -> int:
        """reference_index + 1."""
        return self.reference_index + 1

    def shrunk(self, count: int) -> Self:
        """So many neighbours count as the own row; f stays, for those rows have a share in no difference."""
        return replace(self, absent=self.absent + count)

    def without(self, rejected: tuple[int, ...], n: int) -> Self:
        """The index moves with the rows that are left."""
        if self.reference_index in rejected:
            raise SpecError(f"{self}: the reference row holds NaN or Inf")
        before = sum(row < self.reference_index for row in rejected)
        return replace(self.shrunk(len(rejected)), reference_index=self.reference_index - before)

    def weights(self, gram: Gram, *, weights: Tensor | None = None) -> Tensor:
        """(n,): w_ij s_j, and what is left of 1 on the own row."""
        others = np.arange(gram.n) != self.reference_index
        if weights is None:
            w, gone = np.full(gram.n - 1, 1 / (gram.n + self.absent)), self.absent / (gram.n + self.absent)
        else:
            if len(weights) != gram.n:
                raise ExtraError(f"{self}: weights speak of {len(weights)} rows, and there are {gram.n}")
            w, gone = weights.numpy()[others], max(0.0, 1 - float(weights.sum()))
            if (w < 0).any():
                raise ExtraError(f"{self}: a neighbour's weight is {w.min():g}, they are >= 0")
        far = np.zeros(gram.n - 1, dtype=bool) if gram.infinite is None else gram.infinite.numpy()[others]
        r = np.where(far, 0.0, self.lengths(gram)[others])
        share = np.where(far, 0.0, self.shares(np.append(r, 0.0), np.append(w, gone))[:-1])
        result = np.zeros(gram.n)
        result[others] = w * share
        result[self.reference_index] = 1 - result.sum()
        return torch.from_numpy(result)

    def lengths(self, gram: Gram) -> Floats:
        """(n,): r_j, the distances to the own row."""
        squares = gram.squared_distances[self.reference_index]
        sizes = gram.inner.diagonal()[: gram.n]
        lost = squares < LOST * (sizes + sizes[self.reference_index])
        lost[self.reference_index] = False
        if bool(lost.any()) and gram.source is not None:  # what is sharded has its inner products alone
            squares = squares.clone()
            squares[lost] = self.measured(gram.source, lost)
        r: Floats = squares.sqrt().numpy()
        return np.where(np.isnan(r), np.inf, r)

    def measured(self, rows: AnyRows, which: Tensor) -> Tensor:
        """Squared distances of some rows to the own one, from the coordinates themselves."""
        few = rows.take([self.reference_index, *which.nonzero().flatten().tolist()])
        squares = torch.zeros(few.n - 1, dtype=torch.float64)
        for span in few.layout.spans(AT_ONCE):
            x = few.tile(span).double()
            squares += (x[1:] - x[:1]).square_().sum(1).cpu()
        return squares

    def shares(self, r: Floats, w: Floats) -> Floats:
        """(k,): s_j of k neighbours with distances r >= 0 and weights w; the last is all that sent the own row."""
        raise NotImplementedError


@dataclass(frozen=True)
class Bounded(FromReference):
    """A rule that bears neighbours of some weight: `b`, or that of the f heaviest. Needs n >= 2f + 1."""

    f: int | None = faults("neighbours that may be Byzantine", default=None)
    b: float | None = param("weight of the Byzantine neighbours; none: of the f heaviest", None, ge=0)

    @property
    def min_senders(self) -> int:
        """2f + 1, and reference_index + 1, the absent counted."""
        return max(2 * self.declared + 1 - self.absent, self.reference_index + 1)

    def borne(self, w: Floats) -> float:
        """b_i."""
        if self.b is not None:
            return self.b
        if self.f is None:
            raise SpecError(f"{self} needs f, the neighbours that may be Byzantine, or b, their weight")
        return float(np.sort(self.one_by_one(w))[::-1][: self.f].sum())

    def one_by_one(self, w: Floats) -> Floats:
        """The weights with those that sent the own row, together in the last, counted one by one."""
        return np.append(w[:-1], np.full(self.absent, w[-1] / self.absent)) if self.absent else w[:-1]


def clip(r: Floats, tau: float) -> Floats:
    """min(1, tau / r): of a difference of length r, what its clipping to length tau leaves. tau may be inf."""
    return np.where(r > tau, tau / np.where(r > tau, r, 1.0), 1.0)
