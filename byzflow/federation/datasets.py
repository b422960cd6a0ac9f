"""Labelled data by name, split into training and test sets; nothing is ever downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byzflow.errors import DataError, SpecError, did_you_mean
from byzflow.federation.image_files import FASHION_FOLDERS, read_cifar10, read_mnist


@dataclass(frozen=True, eq=False)
class Split:
    """x (samples, ...) in float32 and labels y (samples,) in int64, 0 to classes - 1, to learn from and to test on."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train_x.shape[1:])


def load(name: str, root: str | Path = "./data", **options: Any) -> Split:
    """The data set of this name.

    "digits" (scikit-learn's 1,797 images of 8 x 8, from the package) and "synthetic" need no files; "mnist",
    "fashion_mnist" and "cifar10" read theirs below `root`. Options are the keyword arguments of `digits` and
    `synthetic`.

    Raises SpecError for an unknown name or option, DataError for files that are missing or do not read.
    """
    key = name.replace("-", "").lower()
    if key not in DATASETS:
        raise SpecError(f"unknown dataset {name!r}; {did_you_mean(name, DATASETS)}")
    makes = DATASETS[key]
    known = inspect.signature(makes).parameters
    if unknown := sorted(options.keys() - (known.keys() - {"root"})):
        raise SpecError(f"dataset {name}: unknown option {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
    return makes(**options, **({"root": Path(root)} if "root" in known else {}))


def digits(*, seed: int = 0, test_share: float = 0.25) -> Split:
    """scikit-learn's handwritten digits, (64,) each in [0, 1], shuffled by `seed`; a share of them is the test set."""
    if not 0 < test_share < 1:
        raise SpecError(f"test_share must be between 0 and 1, got {test_share!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("dataset digits needs scikit-learn: pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    x = torch.from_numpy(images[order].astype(np.float32) / 16.0)
    y = torch.from_numpy(labels[order].astype(np.int64))
    held_out = round(len(y) * test_share)
    return Split(x[held_out:], y[held_out:], x[:held_out], y[:held_out], 10)


def synthetic(
    *, train: int = 2000, test: int = 500, features: int = 32, classes: int = 10, spread: float = 0.55, seed: int = 0
) -> Split:
    """Each class a Gaussian of variance 1 around a mean of its own, whose coordinates are N(0, spread^2).

    At the defaults nobody can do better than about 0.9; a larger `spread` or more features make it easier.
    """
    counts = {"train": train, "test": test, "features": features, "classes": classes}
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise SpecError(f"{name} must be an int >= 1, got {count!r}")
    generator = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(classes, features, generator=generator)
    y = torch.randint(classes, (train + test,), generator=generator)
    x = means[y] + torch.randn(train + test, features, generator=generator)
    return Split(x[:train], y[:train], x[train:], y[train:], classes)


def mnist(*, root: Path) -> Split:
    """MNIST's own four files, plain or gzipped: (1, 28, 28) each in [0, 1]."""
    return Split(*read_mnist(root), classes=10)


def fashion_mnist(*, root: Path) -> Split:
    """Fashion-MNIST, in four files as MNIST's: (1, 28, 28) each in [0, 1]."""
    return Split(*read_mnist(root, FASHION_FOLDERS), classes=10)


def cifar10(*, root: Path) -> Split:
    """CIFAR-10's binary version: (3, 32, 32) each in [0, 1]."""
    return Split(*read_cifar10(root), classes=10)


DATASETS: dict[str, Callable[..., Split]] = {
    "digits": digits,
    "synthetic": synthetic,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "fmnist": fashion_mnist,
    "cifar10": cifar10,
}
