"""Buffers of replicas, such as BatchNorm's statistics: the median over the ranks, where DDP takes those of rank 0."""

from __future__ import annotations

import torch
import torch.distributed as dist

from byzflow_lightning.exchange import from_all


def agree_on_buffers(module: torch.nn.Module, group: dist.ProcessGroup) -> None:
    """Set every floating buffer to its median over the ranks; NaN and Inf rank as +inf. To be called on all ranks."""
    buffers = [each for each in module.buffers() if each.is_floating_point() and each.numel()]
    if not buffers:
        return
    mine = torch.cat([each.detach().flatten().double() for each in buffers])
    ranked = from_all(mine, group).nan_to_num_(nan=torch.inf, neginf=torch.inf).sort(dim=0).values
    n = len(ranked)
    agreed = (ranked[(n - 1) // 2] + ranked[n // 2]) / 2
    agreed = torch.where(agreed.isfinite(), agreed, ranked[0])  # with two ranks the midpoint has no majority
    with torch.no_grad():
        for each, values in zip(buffers, agreed.split_with_sizes([each.numel() for each in buffers]), strict=True):
            each.copy_(values.view(each.shape))
