"""Short trainings in the processes that torchrun started, and how their replicas compare."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy

WORLD, RANK = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def half() -> dict[str, Any]:
    return {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))}


def fit(
    module: pl.LightningModule, ddp: dict[str, Any], options: dict[str, Any], *callbacks: pl.Callback
) -> pl.Trainer:
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": WORLD,
            "strategy": DDPStrategy(process_group_backend="gloo", **ddp),
            "callbacks": list(callbacks),
            "max_epochs": 1,
            **QUIET,
            **options,
        }
    )
    trainer.fit(module)
    return trainer


def fresh(make: Callable[[], pl.LightningModule]) -> pl.LightningModule:
    torch.manual_seed(3)
    return make()


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def identical(*tensors: torch.Tensor) -> bool:
    """Whether all replicas are the same to the last bit."""
    digest = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).digest()
    mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    everyone = [torch.empty_like(mine) for _ in range(WORLD)]
    dist.all_gather(everyone, mine)
    return all(torch.equal(each, mine) for each in everyone)
