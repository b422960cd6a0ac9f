"""The steps that a server and its workers take alike: the same numbers, bit by bit, on every machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from byzflow.errors import SpecError


@dataclass(frozen=True)
class OptimizerStep:
    """Gradient descent with momentum: v <- momentum v + g, x <- x - lr v. All vectors are (n,).

    Every product and every sum is rounded by itself. Fused, as in `add(alpha=...)`, they are rounded once where the
    processor can do that and twice where it cannot, so that two machines would disagree in the last bit.

    Raises SpecError unless lr > 0 and 0 <= momentum < 1.
    """

    lr: float = 0.05
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise SpecError(f"lr must be a finite number > 0, got {self.lr!r}")
        if not 0 <= self.momentum < 1:
            raise SpecError(f"momentum must be >= 0 and < 1, got {self.momentum!r}")

    def __call__(self, x: Tensor, gradient: Tensor, velocity: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The new x, and the velocity to pass in next time (None without momentum); the inputs stay as they are."""
        if self.momentum:
            gradient = gradient if velocity is None else velocity * self.momentum + gradient
            velocity = gradient
        return x - gradient * self.lr, velocity

    def half(self, x: Tensor, gradient: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gossip's half step: m <- momentum m + (1 - momentum) g, starting at 0; the y = x - lr m to send, and m."""
        part = gradient * (1.0 - self.momentum)
        mean = part if mean is None else mean * self.momentum + part
        return x - mean * self.lr, mean
