"""Constant rows: what a broken participant sends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from byzflow.layout import Flat
from byzflow.operators import Attack, RowsOperator, param
from byzflow.rows import AnyRows


@dataclass(frozen=True)
class Constant(Attack, RowsOperator):
    """Base of attacks that send one number in every coordinate."""

    def number(self) -> float:
        """What is sent."""
        raise NotImplementedError

    def produce(self, rows: AnyRows) -> list[Flat]:
        """One answer, for all f."""
        answers = rows.layout.empty(min(1, self.f))
        for leaf in (leaf for answer in answers for leaf in answer):
            leaf.copy_(torch.tensor(self.number(), dtype=torch.float64))  # Inf where the dtype is too narrow
        return answers


@dataclass(frozen=True)
class Inf(Constant):
    """Infinity in every coordinate."""

    name: ClassVar[str] = "inf"

    def number(self) -> float:
        """Inf."""
        return math.inf


@dataclass(frozen=True)
class NaN(Constant):
    """NaN in every coordinate."""

    name: ClassVar[str] = "nan"

    def number(self) -> float:
        """NaN."""
        return math.nan


@dataclass(frozen=True)
class Zero(Constant):
    """Zero in every coordinate: a participant that learns nothing, and drags the mean towards the origin."""

    name: ClassVar[str] = "zero"

    def number(self) -> float:
        """0."""
        return 0.0


@dataclass(frozen=True)
class Huge(Constant):
    """One huge finite number in every coordinate: no test for NaN or Inf finds it (in float16 it is Inf)."""

    name: ClassVar[str] = "huge"
    value: float = param("the number", 1e30)

    def number(self) -> float:
        """The value."""
        return self.value
