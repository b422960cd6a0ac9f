"""The base of the callbacks here: `lightning` and `pytorch_lightning` each want their own class, so it is both."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from byzflow import Operator

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
else:
    _homes = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
    _found = [home for name, home in _homes.items() if find_spec(name) is not None]
    if not _found:
        raise ModuleNotFoundError("neither lightning nor pytorch_lightning is there: pip install 'byzflow[lightning]'")
    Callback = type("Callback", tuple(import_module(home).Callback for home in _found), {})

if "jsonargparse" in sys.modules:  # LightningCLI: a class_path may name an operator, which is a dataclass
    with suppress(AttributeError, TypeError, ValueError):  # older versions take subclasses of dataclasses as they are
        import_module("jsonargparse").set_parsing_settings(subclasses_enabled=[Operator])
