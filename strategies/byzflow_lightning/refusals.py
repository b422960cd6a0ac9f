"""What robust reduction cannot be right for, refused before training starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from byzflow.errors import SpecError

SHARDED = {
    "FSDPStrategy": "FSDP shards gradients inside the backward pass",
    "ModelParallelStrategy": "FSDP2 and tensor parallelism shard gradients inside the backward pass",
    "DeepSpeedStrategy": "DeepSpeed reduces gradients itself",
    "XLAStrategy": "XLA reduces gradients itself",
    "XLAFSDPStrategy": "XLA reduces gradients itself",
}


def check_strategy(strategy: Any) -> None:
    """SpecError unless it is plain DistributedDataParallel."""
    kinds = [kind.__name__ for kind in type(strategy).__mro__]
    for kind in kinds:
        if kind in SHARDED:
            raise SpecError(f"RobustDDP does not work with {kinds[0]}: {SHARDED[kind]}; use Trainer(strategy='ddp')")
    if "DDPStrategy" not in kinds:
        hint = "use Trainer(strategy='ddp', devices=...), or VirtualWorkers to simulate workers in one process"
        raise SpecError(f"RobustDDP does not work with {kinds[0]}: {hint}")
    if getattr(strategy, "_ddp_comm_hook", None) is not None:
        raise SpecError("RobustDDP takes the place of DDP's communication hook: leave ddp_comm_hook out")


def check_model(model: DistributedDataParallel) -> None:
    """SpecError for what averages over the ranks past the rule, and for gradients that are no dense real vectors."""
    if getattr(model, "mixed_precision", None) is not None:
        raise SpecError("DDP's own mixed_precision reduces gradients past the rule: use precision='bf16-mixed' instead")
    if getattr(model, "_delay_all_reduce_params", None):
        raise SpecError("DDP's delay_all_reduce_named_params reduces gradients past the rule: leave it out")
    for name, module in model.module.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            hint = "one rank's NaN or lie reaches all; leave sync_batchnorm off"
            raise SpecError(f"{name} is a SyncBatchNorm, which averages over the ranks inside the forward pass: {hint}")
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise SpecError(f"{name} gives sparse gradients, which cannot be aggregated: set sparse=False")
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad and not parameter.dtype.is_floating_point:
            raise SpecError(f"{name} is {parameter.dtype}: only real floating-point gradients can be aggregated")
        if parameter.requires_grad and name in model.parameters_to_ignore:
            raise SpecError(f"{name} is ignored by DDP: its replicas differ, so there is nothing to aggregate")


def check_optimizers(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """SpecError for one whose replicas would not do the same."""
    for optimizer in optimizers:
        kinds = [kind.__name__ for kind in type(optimizer).__mro__]
        if "LBFGS" in kinds:
            raise SpecError("LBFGS decides by each rank's own loss: replicas would part; use a first-order optimiser")
        if "ZeroRedundancyOptimizer" in kinds or "PostLocalSGDOptimizer" in kinds:
            raise SpecError(f"{kinds[0]} communicates itself: use the plain optimiser")
