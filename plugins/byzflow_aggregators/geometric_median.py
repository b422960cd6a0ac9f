"""The geometric median, found in the n x n world."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import Mixing, faults, param
from byzflow.robustness import ROBUST_MEAN, Bounds, ratio
from byzflow_aggregators.claims import heaviest


@dataclass(frozen=True)
class GeometricMedian(Mixing):
    """The point of least summed distance to the rows (RFA). Needs n >= 2f + 1.

    Chen et al., 2017; Pillutla et al., IEEE TSP 2022, https://arxiv.org/abs/1912.13445. Weiszfeld's iteration
    with distances smoothed below `nu` times the typical distance, so that scaling the rows scales the result
    (ByzFL's absolute nu = 0.1 gives the mean for small updates), and with Vardi and Zhang's step where a row
    coincides with the iterate (ByzPy stalls there). The definition does not use f: it is only checked.
    """

    name: ClassVar[str] = "geometric_median"
    aliases: ClassVar[tuple[str, ...]] = ("rfa", "gm")
    paper: ClassVar[str] = "https://arxiv.org/abs/1912.13445"
    shift_invariant: ClassVar[bool] = True
    f: int | None = faults(default=None)
    nu: float = param("smoothing, relative to the typical distance between rows", 1e-6, gt=0)
    steps: int = param("iterations at most", 300, ge=1)
    tol: float = param("step, relative to the median distance, at which to stop", 1e-8, ge=0)

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.declared + 1

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """kappa = 4(1 + a)^2; lambda = 1 + (n - f)/sqrt(n(n - 2f))."""
        lam = 1 + (n - f) / math.sqrt(n * (n - 2 * f))
        return Bounds(4 * (1 + ratio(n, f)) ** 2, lam, 0.5, "", ROBUST_MEAN)

    def weights(self, gram: Gram, *, sample_weights: Tensor | None = None) -> Tensor:
        """(n,): the weights of the minimiser."""
        p = torch.ones(gram.n, dtype=torch.float64) if sample_weights is None else sample_weights
        heaviest(self, self.declared, p)
        return weiszfeld(gram, p / p.sum(), self.nu * typical_distance(gram), self.steps, self.tol)


def typical_distance(gram: Gram) -> float:
    """Median over the rows of each row's median distance to the others: a few huge rows do not move it."""
    others = ~torch.eye(gram.n, dtype=torch.bool)
    distances = gram.squared_distances[others].view(gram.n, -1).sqrt()
    return float(distances.median(1).values.median()) if gram.n > 1 else 0.0


def central(distances: Tensor, p: Tensor) -> Tensor:
    """(n,): weights, sum 1, of a point amid the rows, from their distances (n, n); p (n,) >= 0.

    One step of Weiszfeld's iteration from beside the row of least summed distance. From the mean, which a far row
    takes with it, the iteration may need thousands of steps to come back.
    """
    from_medoid = distances[torch.where(p > 0, (distances * p).sum(1), torch.inf).argmin()]
    scale = from_medoid[p > 0].median()
    w = p / (from_medoid + scale) if float(scale) > 0 else p * (from_medoid == 0)
    return w / w.sum()


def weiszfeld(gram: Gram, p: Tensor, nu: float, steps: int, tol: float) -> Tensor:
    """(n,): weights of argmin_z sum_i p_i ||z - x_i||, p (n,) >= 0 with sum 1.

    If the minimiser is a row it is returned exactly: the pull of the others is then no larger than its own p.
    """
    if gram.infinite is not None:
        p = p.masked_fill(gram.infinite, 0.0)
        p = p / p.sum()
    distances = torch.where(p > 0, gram.squared_distances.sqrt(), 0.0)
    near = distances <= nu
    pull = torch.where(near, 0.0, p / torch.where(near, 1.0, distances))
    inner = gram.inner[: gram.n, : gram.n]  # all weights here are on rows
    forces = pull - torch.diag(pull.sum(1))
    strength = ((forces @ inner) * forces).sum(1).clamp(min=0).sqrt()
    held = (p > 0) & (strength <= (near * p).sum(1) * (1 + 1e-12))
    if bool(held.any()):
        return gram.unit(int(torch.where(held, (distances * p).sum(1), torch.inf).argmin()))
    # in numpy, whose small operations start sooner
    w, share, products = central(distances, p).numpy(), p.numpy(), inner.numpy()
    norms, least, middle = products.diagonal(), max(nu, 1e-300) ** 2, (gram.n - 1) // 2
    to_rows = products @ w
    for _ in range(steps):
        r = np.sqrt(np.maximum(norms - 2 * to_rows + w @ to_rows, least))
        b = share / r
        b /= b.sum()
        step = b - w
        moved = products @ step
        w, to_rows = b, products @ b
        if step @ moved <= (tol * np.partition(r, middle)[middle]) ** 2:
            break
    return torch.from_numpy(w)
