"""The base of the callbacks here: `lightning` and `pytorch_lightning` each want their own class, so it is both."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
else:
    _found = [name for name in ("lightning", "pytorch_lightning") if find_spec(name) is not None]
    if not _found:
        raise ModuleNotFoundError(
            'neither lightning nor pytorch_lightning is installed: pip install "byzflow[lightning]"'
        )
    _homes = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
    Callback = type("Callback", tuple(import_module(_homes[name]).Callback for name in _found), {})
