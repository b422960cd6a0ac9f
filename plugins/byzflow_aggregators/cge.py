"""Comparative gradient elimination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from byzflow.gram import Gram, smallest
from byzflow.operators import Mixing, faults, param
from byzflow.robustness import Bounds


@dataclass(frozen=True)
class CGE(Mixing):
    """The mean of the n - f rows of least norm. Needs n >= 2f + 1.

    Gupta, Liu and Vaidya, 2021, https://arxiv.org/abs/2101.09316. Norms say nothing of directions: it is not
    (f, kappa)-robust, a reversed row of small norm is kept.
    """

    name: ClassVar[str] = "cge"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "norms"
    aliases: ClassVar[tuple[str, ...]] = ("norm_filter", "comparative_gradient_elimination")
    paper: ClassVar[str] = "https://arxiv.org/abs/2101.09316"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"reduce": "sum"}}
    f: int = faults()
    reduce: Literal["mean", "sum"] = param("how the kept rows are joined; the paper sums", "mean")

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.f + 1

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """None."""
        return Bounds(breakdown=0.0, note="not (f, kappa)-robust: a small reversed row is kept")

    def weights(self, gram: Gram) -> Tensor:
        """Equal on the kept rows."""
        kept = gram.n - self.f
        mean = gram.mean_of(smallest(gram.squared_norms, kept))
        return mean * kept if self.reduce == "sum" else mean
