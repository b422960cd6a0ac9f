"""Robust training for Lightning (lightning or pytorch_lightning >= 2.4), and Lightning for Flower.

    Trainer(strategy="ddp", callbacks=[RobustDDP("nnm | trimmed_mean", f=1)])   # robust_ddp.py: ranks that lie or break
    RobustReducer("krum", f=1)                                                  # the same for Fabric and plain torch
    VirtualWorkers(n=10, f=3, attack="alie", operator="median")                 # virtual_workers.py: in one process
    client_app(module=..., datamodule=..., trainer=...)                         # client_app.py: a Flower ClientApp

Importing this package imports neither lightning nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byzflow_lightning.client_app import client_app as client_app
    from byzflow_lightning.robust_ddp import RobustDDP as RobustDDP
    from byzflow_lightning.robust_reducer import RobustReducer as RobustReducer
    from byzflow_lightning.virtual_workers import VirtualWorkers as VirtualWorkers

_HOMES = {
    "RobustDDP": "robust_ddp",
    "RobustReducer": "robust_reducer",
    "VirtualWorkers": "virtual_workers",
    "client_app": "client_app",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"byzflow_lightning.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
