"""byzflow-app: the model, the data, and how to train and test."""

from collections import OrderedDict
from functools import lru_cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A small network for 8 x 8 images of the ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(OrderedDict(first=nn.Linear(64, 64), act=nn.ReLU(), last=nn.Linear(64, 10)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 64) pixels -> (batch, 10) scores."""
        return self.layers(x)


@lru_cache(maxsize=1)
def load_all() -> tuple[Tensor, Tensor]:
    """All digits and their labels, shuffled the same way everywhere."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def load_data(partition_id: int, num_partitions: int, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """One client's batches for training, and for testing. The last fifth of all digits is nobody's."""
    x, y = load_all()
    mine = torch.arange(partition_id, len(y) * 4 // 5, num_partitions)
    test, train = mine[: len(mine) // 5], mine[len(mine) // 5 :]
    return (
        DataLoader(TensorDataset(x[train], y[train]), batch_size, shuffle=True),
        DataLoader(TensorDataset(x[test], y[test]), batch_size),
    )


def load_held_out() -> DataLoader:
    """The digits that no client has, for the server."""
    x, y = load_all()
    return DataLoader(TensorDataset(x[len(y) * 4 // 5 :], y[len(y) * 4 // 5 :]), 256)


def train(net: nn.Module, loader: DataLoader, epochs: int, lr: float) -> float:
    """Train in place; the mean loss."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    total = 0.0
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


@torch.no_grad()
def test(net: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """The mean loss and the accuracy."""
    net.eval()
    scores = [(net(x), y) for x, y in loader]
    found, y = torch.cat([each for each, _ in scores]), torch.cat([each for _, each in scores])
    return F.cross_entropy(found, y).item(), (found.argmax(1) == y).float().mean().item()
