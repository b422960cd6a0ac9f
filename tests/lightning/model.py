"""A small module with switches for what data-parallel training must bear, and its data."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import byzflow

CLASSES, FEATURES = 4, 12


def blobs(count: int, seed: int = 0) -> TensorDataset:
    """Points around one centre a class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(7)) * 1.5
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return TensorDataset(centres[labels] + torch.randn(count, FEATURES, generator=generator), labels)


class Net(pl.LightningModule):
    """Two layers, more by switch: `norm`, `unused` on all ranks or one."""

    def __init__(self, norm: bool = False, unused: str = "", lr: float = 0.1, optimizer: str = "sgd") -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.last = nn.Linear(16, CLASSES)
        self.spare = nn.Linear(16, CLASSES) if unused else None
        self.unused, self.lr, self.kind = unused, lr, optimizer

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x)))
        out: Tensor = self.last(hidden)
        if self.spare is not None and self.unused == "one" and self.global_rank != 0:
            out = out + self.spare(hidden)
        return out

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        if self.kind == "sgd":
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return torch.optim.Adam(self.parameters(), lr=self.lr, fused=self.kind == "fused")

    def train_dataloader(self) -> Any:
        return DataLoader(blobs(40 * self.trainer.world_size), batch_size=8)

    def accuracy(self) -> float:
        x, y = blobs(400, seed=1).tensors
        with torch.no_grad():
            return float((self.eval()(x).argmax(1) == y).float().mean())


class Manual(Net):
    """Manual optimisation with two optimisers, each stepping on its own loss."""

    def __init__(self, clip: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.clip = clip

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.first.parameters(), lr=0.1), torch.optim.Adam(self.last.parameters(), lr=0.01)]

    def training_step(self, batch: Any, index: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            if self.clip:
                self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
            optimizer.step()


class Liar(Net):
    """The last rank sends what an attack makes of the others' gradients, or NaN, or has none; or all send NaN."""

    def __init__(self, attack: str, **options: Any) -> None:
        super().__init__(**options)
        self.attack = attack

    def on_after_backward(self) -> None:
        rows = gradients(self)
        lies = self.global_rank == len(rows) - 1
        if self.attack == "absent" and lies:
            for p in self.parameters():
                p.grad = None
        elif self.attack == "all nan" or (self.attack == "nan" and lies):
            self.send(torch.full_like(rows[0], torch.nan))
        elif lies:
            self.send(byzflow.attack(self.attack, rows[:-1], f=1)[0])

    def send(self, row: Tensor) -> None:
        start = 0
        for p in self.parameters():
            assert p.grad is not None
            p.grad.copy_(row[start : start + p.numel()].view(p.shape))
            start += p.numel()


def gradients(module: nn.Module) -> Tensor:
    """(ranks, d): what each rank has now."""
    mine = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, mine)
    return torch.stack(rows)


class Spread(pl.Callback):
    """How far the ranks' gradients are apart after each backward pass: 0 once they have been averaged."""

    def __init__(self) -> None:
        self.least = float("inf")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rows = gradients(pl_module)
        self.least = min(self.least, float((rows - rows.mean(0)).norm()))
