"""Run by every rank under torchrun: trains each feature with plain DDP and each mechanism, writes what came out.

`torchrun --standalone --nproc-per-node 4 -m tests.lightning.matrix FILE`
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from byzflow.errors import ByzflowError
from byzflow_lightning import RobustDDP
from tests.lightning import uses
from tests.lightning.model import Liar, Manual, Net, Spread
from tests.lightning.run import RANK, WORLD, fit, flat, fresh, half, identical

MECHANISMS: dict[str, dict[str, Any]] = {"shard": {}, "overlap": {"overlap": True}, "gather": {"trust": "gather"}}


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


def matrix() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (make, ddp, options) in FEATURES.items():
        reference = fresh(make)
        start = flat(reference)
        averaged = Spread()
        fit(reference, ddp, options(), averaged)
        expected = flat(reference)
        for mechanism, how in MECHANISMS.items():
            module, apart = fresh(make), Spread()
            try:
                fit(module, ddp, options(), apart, RobustDDP("mean", **how))
            except ByzflowError as error:
                trained = not torch.equal(flat(module), start)
                found[f"{name} / {mechanism}"] = {"refused": str(error), "trained": trained}
                continue
            found[f"{name} / {mechanism}"] = {
                "difference": float((flat(module) - expected).abs().max()),
                "moved": float((expected - start).abs().max()),
                "identical": identical(flat(module), *module.buffers()),
                "spread": apart.least,
                "spread of plain DDP": averaged.least,
            }
    return found


def protection() -> dict[str, Any]:
    """One of the ranks attacks."""
    found: dict[str, Any] = {}
    for attack in ("foe(tau=10)", "alie(z=40)", "nan", "absent"):
        for operator, mechanism in (("mean", "shard"), ("median", "shard"), ("nnm | trimmed_mean", "gather")):
            module, robust = (
                fresh(lambda attack=attack: Liar(attack, lr=0.05)),
                RobustDDP(operator, f=1, **MECHANISMS[mechanism]),
            )
            fit(module, {}, {"max_epochs": 3}, robust)
            found[f"{attack} / {operator}"] = {
                "accuracy": module.accuracy(),
                "identical": identical(flat(module)),
                "left out": robust.reducer.times_left_out,
                "steps": module.trainer.global_step,
            }
    for operator, f in (("median", None), ("mean", None)):  # of four ranks the median bears one, the mean none
        module, robust = fresh(lambda: Liar("nan", lr=0.05)), RobustDDP(operator, f=f)
        trainer = fit(module, {}, half() | {"max_epochs": 3}, robust)
        scale = torch.tensor(trainer.precision_plugin.scaler.get_scale())
        found[f"16-mixed nan / {operator}"] = {
            "accuracy": module.accuracy(),
            "identical": identical(flat(module), scale),
            "scale": float(scale),
        }
    return found


def main() -> None:
    for name in ("lightning.pytorch", "pytorch_lightning", "byzflow_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = {"matrix": matrix(), "protection": protection() if WORLD == 4 else {}}
    found["uses"] = uses.everything() if WORLD == 4 else {}
    found["seconds"] = time.perf_counter() - began
    if RANK == 0:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
