"""What each worker sends: the running mean of its gradients, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from byzflow_lightning.worker_step import Gradients, finite, row_dtype


class Momenta:
    """m = beta m + (1 - beta) gradient for each of `count` workers, from m = 0; with beta = 0 the gradients.

    `rows` holds a (count, ...) tensor for each parameter, by name, in float32 at least.
    """

    def __init__(self, count: int, beta: float) -> None:
        self.count, self.beta = count, beta
        self.rows: dict[str, Tensor] = {}
        self.broken: set[int] = set()

    def fit(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Make room for these parameters, new ones at 0; whether any came or went since the last time."""
        self.broken.clear()
        if self.rows.keys() == parameters.keys():
            return False
        old = self.rows
        self.rows = {
            name: old[name]
            if name in old
            else torch.zeros((self.count, *each.shape), dtype=row_dtype(each), device=each.device)
            for name, each in parameters.items()
        }
        return bool(old)

    def add(self, worker: int, found: Gradients | None) -> None:
        """One worker's gradient. None, NaN or Inf leave its mean as it was, and break its row of this step."""
        if found is None or not finite(found):
            self.broken.add(worker)
            return
        for name, rows in self.rows.items():
            row, gradient = rows[worker], found[name]
            row.mul_(self.beta) if self.beta else row.zero_()
            if gradient is not None:
                row.add_(gradient, alpha=1 - self.beta)

    def row(self, worker: int) -> dict[str, Tensor]:
        """What the worker sends in this step, by name; NaN if its gradient is broken."""
        own = {name: rows[worker] for name, rows in self.rows.items()}
        return {name: torch.full_like(each, torch.nan) for name, each in own.items()} if worker in self.broken else own
