"""Small models by name, for configurations: everyone who names the same seed begins with the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from byzflow.errors import ModelError, SpecError, did_you_mean
from byzflow.federation.randomness import random_numbers


def make_model(name: str, shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Sequential:
    """A model from samples of this shape to (batch, classes) scores: "softmax", "mlp" or "cnn".

    Its first weights depend on the seed alone. SpecError for an unknown name, ModelError for a shape it cannot take.
    """
    if name not in MODELS:
        raise SpecError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")
    if classes < 1 or not shape or min(shape) < 1:
        raise ModelError(f"model {name} needs samples of a shape and one class at least, got {shape} and {classes}")
    with random_numbers(seed):
        return MODELS[name](shape, classes)


def softmax(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """One linear layer, which begins at zero: convex with cross entropy."""
    linear = nn.Linear(math.prod(shape), classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)


def mlp(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """A hidden layer of 64 units with ReLU."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.ReLU(), nn.Linear(64, classes))


def cnn(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Two convolutions with ReLU and maxima over 2 x 2, and a linear layer; shape (channels, h, w), h and w >= 4."""
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ModelError(f"model cnn needs images (channels, height, width) of 4 x 4 or more, got {shape}")
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), classes),
    )  # fmt: skip


MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Sequential]] = {"softmax": softmax, "mlp": mlp, "cnn": cnn}
