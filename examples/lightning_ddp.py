"""Four ranks train on handwritten digits and one of them lies: Lightning's DDP with the mean, and with RobustDDP.

    python examples/lightning_ddp.py                           # nnm | trimmed_mean, f = 1
    python examples/lightning_ddp.py --operator mean           # what one liar does to plain averaging
    python examples/lightning_ddp.py --operator median --lie nan

Needs `pip install "byzflow[lightning]" scikit-learn`. Runs on the CPU in about a minute.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from byzflow.errors import ByzflowError
from byzflow_lightning import RobustDDP

RANKS = 4


def digits() -> tuple[Any, Any]:
    """1400 pictures to train with and 397 to test."""
    data = load_digits()
    pictures = TensorDataset(torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target))
    train, test = random_split(pictures, [1400, 397], torch.Generator().manual_seed(0))
    return train, test


class Classifier(pl.LightningModule):
    """A plain module: it knows nothing of byzflow, except that its last rank can be told to lie."""

    def __init__(self, lie: str) -> None:
        super().__init__()
        self.lie = lie
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_after_backward(self) -> None:
        if self.global_rank != RANKS - 1:
            return
        for p in self.parameters():
            if self.lie == "flip" and p.grad is not None:
                p.grad *= -10
            elif self.lie == "nan" and p.grad is not None:
                p.grad.fill_(torch.nan)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operator", default="nnm | trimmed_mean", help="the rule in the place of the mean")
    parser.add_argument("--lie", choices=["flip", "nan", "none"], default="flip", help="what the last rank sends")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    pl.seed_everything(0, verbose=False)
    train, test = digits()
    try:
        robust = RobustDDP(arguments.operator, f=1)
    except ByzflowError as error:
        parser.error(str(error))
    trainer = pl.Trainer(
        accelerator="cpu", strategy="ddp", devices=RANKS, max_epochs=arguments.epochs, callbacks=[robust],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Classifier(arguments.lie)
    trainer.fit(module, DataLoader(train, batch_size=16, shuffle=True))
    if trainer.is_global_zero:
        pictures, labels = next(iter(DataLoader(test, batch_size=len(test))))
        with torch.no_grad():
            accuracy = (module.net(pictures).argmax(1) == labels).float().mean().item()
        left_out = ", ".join(f"rank {r} {n} times" for r, n in robust.reducer.times_left_out.items()) or "nobody"
        print(f"{robust.reducer.operator}: accuracy {accuracy:.1%}; left out: {left_out}")


if __name__ == "__main__":
    main()
