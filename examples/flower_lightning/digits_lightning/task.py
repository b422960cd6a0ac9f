"""An ordinary LightningModule and LightningDataModule: nothing here knows of Flower."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from byzflow_flower.digits.task import client_data


class Digits(LightningModule):
    """A perceptron with BatchNorm, on images of 8 x 8 pixels."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
        self.lr = lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train-loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        scores = self.net(batch[0])
        self.log("loss", functional.cross_entropy(scores, batch[1]))
        self.log("accuracy", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Shard(LightningDataModule):
    """The digits of one client; the last tenth is for validation."""

    def __init__(self, partition: int, clients: int, batch_size: int) -> None:
        super().__init__()
        x, y = client_data(partition, clients, alpha=1.0, seed=0)
        cut = max(1, len(y) // 10)
        self.train, self.val = TensorDataset(x[cut:], y[cut:]), TensorDataset(x[:cut], y[:cut])
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val, self.batch_size)


def flip_labels(batch: Any) -> Any:
    """What a label-flipping client pretends to have seen."""
    x, y = batch
    return x, 9 - y
