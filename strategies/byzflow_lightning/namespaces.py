"""Lightning goes by two names, `lightning.pytorch` and `pytorch_lightning`, with classes of their own.

What is made here is at home in both, as far as they are installed.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


@cache
def installed() -> tuple[ModuleType, ...]:
    """The packages that are there, at least one. Raises ModuleNotFoundError."""
    found = tuple(import_module(name) for name in PACKAGES if find_spec(name.partition(".")[0]))
    if not found:
        raise ModuleNotFoundError('Lightning is not installed: pip install "byzflow[lightning]"')
    return found


def home_of(thing: Any) -> ModuleType:
    """The package whose LightningModule or LightningDataModule it is. Raises TypeError if it is neither."""
    for package in installed():
        if isinstance(thing, package.LightningModule | package.LightningDataModule):
            return package
    raise TypeError(f"expected a LightningModule or LightningDataModule, got {type(thing).__name__}")


if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback as Callback
else:
    Callback = type("Callback", tuple(package.Callback for package in installed()), {"__doc__": "At home in both."})
