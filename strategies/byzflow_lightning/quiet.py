"""A Trainer that trains and leaves nothing behind: no files, no bars, no words."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from byzflow.federation.randomness import random_numbers
from byzflow.operators import seeded

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
TALKATIVE = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
SILENT: Mapping[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class QuietTrainers:
    """Trainers with these arguments, one for each use: copies, as making one looks through all installed packages."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {**SILENT, **options}
        self.made: dict[str, Any] = {}

    def for_module(self, module: Any, callback: Any) -> Any:
        """A Trainer of the package that the LightningModule is of, its callbacks copies, and one more. TypeError."""
        for package in PACKAGES:
            if any(kind.__module__.startswith(f"{package}.") for kind in type(module).__mro__):
                if package not in self.made:
                    self.made[package] = import_module(package).Trainer(**self.options)
                trainer = copy.deepcopy(self.made[package])
                trainer.callbacks.append(callback)
                return trainer
        raise TypeError(f"module must give a LightningModule, got {type(module).__name__}")


@contextmanager
def silence() -> Iterator[None]:
    """Hear errors only: not which devices there are, nor how many loader workers would be faster."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def random_state(seed: int | None, *where: int) -> Iterator[None]:
    """Global random numbers of torch, numpy and Python that depend on these numbers alone; as before afterwards.

    A seed of None leaves them as they are.
    """
    if seed is None:
        yield
        return
    for number in where:
        seed = int(torch.randint(2**62, (), generator=seeded(seed, "client_app", number)))
    with random_numbers(seed):
        yield
