"""The data, the model and the training loop that every way of running the digits app shares.

The images are scikit-learn's digits: 1,797 real handwritten digits of 8 x 8 pixels that ship inside the package,
so nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from byzflow.federation.datasets import digits
from byzflow.federation.partitions import partition

CLASSES = 10
HIDDEN = 64
TEST_SHARE = 0.25

Samples = tuple[Tensor, Tensor]


def make_model(seed: int) -> nn.Sequential:
    """A two-layer perceptron whose first weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


@lru_cache(maxsize=4)
def load(seed: int) -> tuple[Samples, Samples]:
    """All digits, shuffled by `seed`: the part the clients share out, and the server's held-out test set."""
    data = digits(seed=seed, test_share=TEST_SHARE)
    return (data.train_x, data.train_y), (data.test_x, data.test_y)


def split(labels: NDArray[np.int64], clients: int, alpha: float, seed: int) -> list[NDArray[np.int64]]:
    """Give each sample to one client; a small `alpha` makes the clients' mixes of classes differ more."""
    return partition("dirichlet", labels, clients, seed=seed, alpha=alpha)


@lru_cache(maxsize=512)
def client_data(partition: int, clients: int, alpha: float, seed: int) -> Samples:
    """The samples that client `partition` of `clients` holds."""
    (x, y), _ = load(seed)
    mine = torch.from_numpy(split(y.numpy(), clients, alpha, seed)[partition])
    return x[mine], y[mine]


def flip_labels(labels: Tensor) -> Tensor:
    """What a label-flipping client pretends to have seen: 0 becomes 9, 1 becomes 8, and so on."""
    return CLASSES - 1 - labels


def train(model: nn.Module, samples: Samples, *, epochs: int, lr: float, batch: int, seed: Sequence[int]) -> float:
    """Plain minibatch SGD in place; returns the mean loss of the last epoch.

    The update is written out because creating a torch optimiser imports the compiler: 1.7 s in each process.
    """
    x, y = samples
    parameters = list(model.parameters())
    rng = np.random.default_rng(seed)
    loss_sum = 0.0
    for _ in range(epochs):
        loss_sum = 0.0
        order = torch.from_numpy(rng.permutation(len(y)))
        for start in range(0, len(y), batch):
            chunk = order[start : start + batch]
            loss = functional.cross_entropy(model(x[chunk]), y[chunk])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=lr)
            loss_sum += loss.item() * len(chunk)
    return loss_sum / len(y)


@torch.no_grad()
def evaluate(model: nn.Module, samples: Samples) -> tuple[float, float]:
    """Mean loss and accuracy."""
    x, y = samples
    scores = model(x)
    loss = functional.cross_entropy(scores, y)
    return loss.item(), (scores.argmax(1) == y).float().mean().item()
