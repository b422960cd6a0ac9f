"""Ten virtual workers learn handwritten digits, three of them lie: what survives, with and without worker momentum.

    python examples/lightning_digits.py

Nothing is downloaded; it takes about a minute of one core. `--help` shows what can be changed.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from byzflow.errors import ByzflowError
from byzflow_flower.digits.task import evaluate, load, make_model
from byzflow_lightning import VirtualWorkers
from byzflow_lightning.quiet import silence

N, F = 10, 3
RULES = ("mean", "trimmed_mean", "nnm | trimmed_mean")
ATTACKS = ("foe(tau=3)", "alie(z=1.5)", "sign_flip")
MOMENTA = (0.0, 0.9)
BATCH = 2 * N  # two samples a worker: noisy gradients are where attackers hide


class Digits(LightningModule):
    """An ordinary LightningModule: nothing in it knows of workers or liars."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_model(seed=0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def accuracy(rule: str, attack: str | None, momentum: float, steps: int = 200) -> float:
    """The share of held-out digits recognised after training."""
    train, test = load(seed=0)
    module = Digits()
    order = torch.Generator().manual_seed(0)
    trainer = Trainer(
        max_steps=steps,
        callbacks=[VirtualWorkers(N, F, attack, rule, momentum)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(*train), BATCH, shuffle=True, drop_last=True, generator=order))
    return evaluate(module.net, test)[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rules", nargs="+", default=RULES, metavar="SPEC")
    parser.add_argument("--attacks", nargs="+", default=ATTACKS, metavar="SPEC")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        for rule, attack in product(arguments.rules, (None, *arguments.attacks)):
            VirtualWorkers(N, F, attack, rule)  # a mistake in any of them shows before anything is trained
    except ByzflowError as error:
        parser.error(str(error))

    width = max(map(len, arguments.rules))
    print(f"accuracy with n = {N}, f = {F}; worker momentum " + " -> ".join(map(str, MOMENTA)))
    print(" " * width, *(f"{attack:>15}" for attack in ("none", *arguments.attacks)))
    for rule in arguments.rules:
        print(f"{rule:<{width}}", end="", flush=True)
        for attack in (None, *arguments.attacks):
            with silence():
                shares = [accuracy(rule, attack, momentum, arguments.steps) for momentum in MOMENTA]
            print(f"{' -> '.join(f'{share:.2f}' for share in shares):>16}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
