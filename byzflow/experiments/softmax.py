"""A federation small enough to try hundreds of defences in a minute: softmax regression on generated data.

Ten classes in 32 dimensions, each a Gaussian around its own mean; n - f honest workers with batches of 25 and
momentum. A share gamma of the training data is dealt out evenly, the rest sorted by label: gamma = 1 is
homogeneous, at gamma = 0 each worker has seen one class or two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from byzflow.federation.datasets import synthetic
from byzflow.operators import Operator

CLASSES, FEATURES = 10, 32
TRAIN, TEST = 6000, 2000


@dataclass(frozen=True)
class Setting:
    """One run: who attacks what, on which data, for how long."""

    gamma: float
    seed: int = 0
    honest: int = 10
    f: int = 3
    steps: int = 300
    batch: int = 25
    learning_rate: float = 0.5
    beta: float = 0.9
    weight_decay: float = 1e-4


@dataclass(frozen=True, eq=False)
class Data:
    """Each honest worker's shard, (honest, size, features + 1) and (honest, size), and the common test set."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def make_data(setting: Setting) -> Data:
    """The data of a setting; the same for the same seed, gamma and number of workers."""
    data = synthetic(train=TRAIN, test=TEST, features=FEATURES, classes=CLASSES, seed=setting.seed)
    x, test_x = (torch.cat([each, torch.ones(len(each), 1)], dim=1) for each in (data.train_x, data.test_x))  # the bias
    y = data.train_y
    even = int(setting.gamma * TRAIN)
    order = torch.cat([torch.arange(even), even + torch.sort(y[even:], stable=True).indices])
    size = TRAIN // setting.honest
    share = even // setting.honest
    shards = []
    for worker in range(setting.honest):
        sorted_from = even + worker * (size - share)
        shards.append(
            torch.cat([order[worker * share : (worker + 1) * share], order[sorted_from : sorted_from + size - share]])
        )
    index = torch.stack(shards)
    return Data(x[index], y[index], test_x, data.test_y)


def train(setting: Setting, data: Data, defence: Operator, attack: Operator | str | None) -> float:
    """Test accuracy in [0, 1] at the end. `attack` is an operator, "label_flip", or None for no attack.

    Label flippers hold the data of the first f honest workers with y -> 9 - y, and train like anyone.
    """
    generator = torch.Generator().manual_seed(setting.seed + 1)
    weights = torch.zeros(CLASSES * (FEATURES + 1))
    x, y = data.x, data.y
    if attack == "label_flip":
        x = torch.cat([x, x[: setting.f]])
        y = torch.cat([y, CLASSES - 1 - y[: setting.f]])
    momentum = torch.zeros(len(x), weights.numel())
    for _ in range(setting.steps):
        picked = torch.randint(x.shape[1], (len(x), setting.batch), generator=generator)
        rows = torch.arange(len(x))[:, None]
        momentum.mul_(setting.beta).add_(gradients(weights, x[rows, picked], y[rows, picked]), alpha=1 - setting.beta)
        sent = momentum
        if isinstance(attack, Operator):
            sent = torch.cat([momentum, attack(momentum)])
        weights -= setting.learning_rate * (defence(sent) + setting.weight_decay * weights)
    scores = data.test_x @ weights.view(CLASSES, -1).T
    return float((scores.argmax(1) == data.test_y).float().mean())


def gradients(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(workers, parameters): each worker's mean gradient of the cross entropy on its batch."""
    scores = x @ weights.view(CLASSES, -1).T
    wrong = scores.softmax(2)
    wrong.scatter_add_(2, y[:, :, None], wrong.new_full((*y.shape, 1), -1.0))
    return torch.einsum("wbc,wbf->wcf", wrong, x).flatten(1) / x.shape[1]
