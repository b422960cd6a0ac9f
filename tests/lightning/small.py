"""Small models and quiet trainers, in either of Lightning's packages."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@contextmanager
def lightning_as_it_is() -> Any:
    """What Lightning says about workers of loaders and pytrees is no failure of ours."""
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def samples(count: int = 60, features: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, features, generator=generator)
    return x, (x @ torch.randn(features, classes, generator=generator)).argmax(1)


def loader(batch_size: int = 12, count: int = 60, **options: Any) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*samples(count)), batch_size=batch_size, **options)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def make_module(
    package: str = PACKAGES[0],
    net: nn.Module | None = None,
    optimizer: Callable[[Any], Any] = lambda parameters: torch.optim.SGD(parameters, lr=0.3),
    step: Callable[[Any, Any, int], Any] | None = None,
) -> Any:
    """A LightningModule around a network, its loss the cross entropy unless `step(module, batch, index)` says else."""

    class Small(import_module(package).LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network() if net is None else net

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if step is not None:
                return step(self, batch, batch_idx)
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return optimizer(self.parameters())

    return Small()


def fit(
    module: Any, data: Any, *callbacks: Any, package: str = PACKAGES[0], ckpt_path: Any = None, **options: Any
) -> Any:
    """Train; the trainer."""
    with lightning_as_it_is():
        trainer = import_module(package).Trainer(**{**QUIET, "max_epochs": 3, "callbacks": list(callbacks), **options})
        trainer.fit(module, data, **({"ckpt_path": ckpt_path} if ckpt_path else {}))
    return trainer


def distance(one: Any, other: Any) -> float:
    """The largest difference between the weights of two modules, buffers included."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)
