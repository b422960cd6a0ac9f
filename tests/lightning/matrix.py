"""Run by every rank under torchrun: trains each feature with plain DDP and each mechanism, writes what came out.

`torchrun --standalone --nproc-per-node 4 -m tests.lightning.matrix FILE`
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy

from byzflow.errors import ByzflowError
from byzflow_lightning import RobustDDP
from tests.lightning.model import Liar, Manual, Net

WORLD, RANK = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
MECHANISMS: dict[str, dict[str, Any]] = {"shard": {}, "overlap": {"overlap": True}, "gather": {"trust": "gather"}}


def half() -> dict[str, Any]:
    return {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))}


# name -> (module, options of DDP, options of the Trainer)
FEATURES: dict[str, tuple[Callable[[], pl.LightningModule], dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "plain": (Net, {}, dict),
    "adam": (lambda: Net(optimizer="adam", lr=0.01), {}, dict),
    "static graph": (Net, {"static_graph": True}, dict),
    "bucket views": (Net, {"gradient_as_bucket_view": True}, dict),
    "many buckets": (Net, {"bucket_cap_mb": 1e-4}, dict),
    "accumulation": (Net, {}, lambda: {"accumulate_grad_batches": 2, "limit_train_batches": 4}),
    "ragged accumulation": (Net, {}, lambda: {"accumulate_grad_batches": 2}),
    "clip norm": (Net, {}, lambda: {"gradient_clip_val": 0.05}),
    "clip value": (Net, {}, lambda: {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "bf16-mixed": (Net, {}, lambda: {"precision": "bf16-mixed"}),
    "16-mixed": (Net, {}, half),
    "16-mixed fused": (lambda: Net(optimizer="fused", lr=0.01), {}, half),
    "batch norm": (lambda: Net(norm=True), {}, dict),
    "unused on all": (lambda: Net(unused="all"), {"find_unused_parameters": True}, dict),
    "unused on one": (lambda: Net(unused="one"), {"find_unused_parameters": True}, dict),
    "two optimisers": (Manual, {"find_unused_parameters": True}, dict),
    "clip by hand": (lambda: Manual(clip=True), {"find_unused_parameters": True}, dict),
}


def fit(
    module: pl.LightningModule, ddp: dict[str, Any], options: dict[str, Any], robust: RobustDDP | None = None
) -> pl.Trainer:
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": WORLD,
            "strategy": DDPStrategy(process_group_backend="gloo", **ddp),
            "callbacks": [robust] if robust else [],
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
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


def matrix() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (make, ddp, options) in FEATURES.items():
        reference = fresh(make)
        start = flat(reference)
        fit(reference, ddp, options())
        expected = flat(reference)
        for mechanism, how in MECHANISMS.items():
            module = fresh(make)
            try:
                fit(module, ddp, options(), RobustDDP("mean", **how))
            except ByzflowError as error:
                found[f"{name} / {mechanism}"] = {"refused": str(error), "trained": not torch.equal(flat(module), start)}
                continue
            found[f"{name} / {mechanism}"] = {
                "difference": float((flat(module) - expected).abs().max()),
                "moved": float((expected - start).abs().max()),
                "identical": identical(flat(module), *module.buffers()),
            }
    return found


def protection() -> dict[str, Any]:
    """One of the ranks attacks."""
    found: dict[str, Any] = {}
    for attack in ("none", "foe(tau=10)", "alie(z=40)", "nan", "absent"):
        for operator in ("mean", "median", "nnm | trimmed_mean"):
            for mechanism in ("shard", "gather"):
                if mechanism == "gather" and operator == "mean":
                    continue
                torch.manual_seed(3)
                make = (lambda: Net(lr=0.05)) if attack == "none" else (lambda a=attack: Liar(a, lr=0.05))
                module, robust = fresh(make), RobustDDP(operator, f=1, **MECHANISMS[mechanism])
                fit(module, {}, {"max_epochs": 4}, robust)
                found[f"{attack} / {operator} / {mechanism}"] = {
                    "accuracy": module.accuracy(),
                    "spread": min(getattr(module, "spreads", [1.0])),
                    "identical": identical(flat(module)),
                    "left out": robust.reducer.times_left_out,
                    "weights": robust.reducer.audit.weights,
                }
    for operator, f in (("median", 1), ("mean", 1), ("mean", None)):
        module, robust = fresh(lambda: Liar("nan", lr=0.05)), RobustDDP(operator, f=f)
        trainer = fit(module, {}, half() | {"max_epochs": 4}, robust)
        scale = torch.tensor(trainer.precision_plugin.scaler.get_scale())
        found[f"16-mixed / nan / {operator} / f={f}"] = {
            "accuracy": module.accuracy(),
            "identical": identical(flat(module), scale),
            "scale": float(scale),
        }
    return found


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = {"matrix": matrix(), "protection": protection() if WORLD == 4 else {}}
    found["seconds"] = time.perf_counter() - began
    if RANK == 0:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
