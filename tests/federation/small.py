"""Tiny nodes for tests: a fixed gradient, or a fixed model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from byzflow.federation.nodes import ByzantineNode, HonestNode


class Fixed(HonestNode):
    """Sends the same gradient in each round, `delay` seconds after it was asked."""

    def __init__(self, gradient: Sequence[float], dtype: torch.dtype = torch.float32, delay: float = 0.0) -> None:
        self.gradient = torch.tensor(gradient, dtype=dtype)
        self.x = torch.zeros_like(self.gradient)
        self.delay, self.asked = delay, 0

    def next_batch(self) -> tuple[Tensor, Tensor]:
        return torch.empty(0), torch.empty(0)

    def honest_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gradient

    async def honest_gradient_for_next_batch(self) -> Tensor:  # type: ignore[override]
        self.asked += 1
        await asyncio.sleep(self.delay)
        return self.gradient

    def apply_server_gradient(self, gradient: Tensor) -> None:
        self.x = self.x - gradient

    def get_parameters(self) -> Tensor:
        return self.x.clone()

    def set_parameters(self, vector: Tensor) -> None:
        self.x = vector.clone()

    def digest(self) -> str:
        return str(self.x.tolist())


class Valued(Fixed):
    """Has a model of one value, and learns nothing: what gossip makes of it is mixing alone."""

    def __init__(self, value: float, d: int = 2) -> None:
        super().__init__([0.0] * d)
        self.x = torch.full((d,), float(value))

    def half_step(self) -> Tensor:
        return self.x.clone()


class Shouting(ByzantineNode):
    """Sends a large multiple of the honest mean, reversed, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def byzantine_gradient(self, x: Tensor, y: Tensor, honest_grads: Sequence[Tensor] | None = None) -> Tensor:
        assert honest_grads
        return -100.0 * torch.stack(list(honest_grads)).mean(0)

    def apply_server_gradient(self, gradient: Tensor) -> None:
        self.given.append(gradient)
