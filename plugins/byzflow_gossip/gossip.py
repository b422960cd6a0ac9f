"""Plain gossip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from byzflow.gram import Gram
from byzflow.robustness import Bounds
from byzflow_gossip.reference import Floats, FromReference


@dataclass(frozen=True)
class Gossip(FromReference):
    """The rows mixed by `weights`, 1/n each if not given; one Byzantine neighbour moves it anywhere."""

    name: ClassVar[str] = "gossip"
    aliases: ClassVar[tuple[str, ...]] = ("dpsgd",)
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "nothing"

    def bounds(self, n: int, f: int, d: int | None) -> Bounds:
        """One Byzantine row is enough."""
        return Bounds(breakdown=0.0, note="one Byzantine row moves it anywhere")

    def lengths(self, gram: Gram) -> Floats:
        """(n,): zeros, for it measures nothing."""
        return np.zeros(gram.n)

    def shares(self, r: Floats, w: Floats) -> Floats:
        """Every difference whole."""
        return np.ones_like(r)
