"""Centred clipping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from byzflow.gram import Gram
from byzflow.operators import Mixing, Step, faults, param
from byzflow.robustness import Bounds


@dataclass(frozen=True)
class CenteredClipping(Mixing):
    """The centre moved by the mean of the rows' differences from it, each clipped to norm tau. Needs n >= 2f + 1.

    Karimireddy, He and Jaggi, ICML 2021, https://arxiv.org/abs/2012.10333. The centre is the previous result:
    pass it as `center` (zeros if absent), the state holds the next one. ByzPy starts at the mean of the rows,
    which one large row moves anywhere. Theory wants f/n below about 0.1.
    """

    name: ClassVar[str] = "centered_clipping"
    aliases: ClassVar[tuple[str, ...]] = ("cc", "centred_clipping", "center_clipping")
    paper: ClassVar[str] = "https://arxiv.org/abs/2012.10333"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"byzfl": {"tau": 100.0}, "byzpy": {"iterations": 10}}
    vectors: ClassVar[tuple[str, ...]] = ("center",)
    tau: float = param("largest difference that counts whole, in the unit of the rows' norm", gt=0)
    iterations: int = param("times the centre is moved", 1, ge=1, le=10_000)
    f: int | None = faults(default=None)

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.declared + 1

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """None for a fixed tau."""
        return Bounds(breakdown=0.1, note="not (f, kappa)-robust for a fixed tau; practice to f/n of 0.1 to 0.15")

    def weights(self, gram: Gram) -> Tensor:
        """(p - 1,): on the rows and the first centre."""
        center = gram.point("center") if "center" in gram.vectors else gram.origin
        inner, n = gram.inner.numpy(), gram.n  # numpy's small operations start sooner than torch's
        norms, w = inner.diagonal()[:n], np.zeros(gram.origin + 1)
        w[center] = 1
        far = np.zeros(n, dtype=bool) if gram.infinite is None else gram.infinite.numpy()
        for _ in range(self.iterations):
            products = inner @ w
            away = np.sqrt(np.maximum(norms - 2 * products[:n] + w @ products, 0))
            share = np.where(far, 0, self.tau / np.maximum(away, self.tau)) / n
            w *= 1 - share.sum()
            w[:n] += share
        return torch.from_numpy(w[: gram.origin])

    def remember(self, step: Step) -> Mapping[str, Any]:
        """The next centre."""
        return {"center": step.value}
