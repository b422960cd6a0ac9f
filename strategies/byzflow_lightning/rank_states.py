"""The state of every rank in one checkpoint, of which Lightning writes rank 0's alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def of_all_ranks(value: Any, device: torch.device) -> list[Any]:
    """What each rank holds, by rank: tensors and numbers in mappings and lists of the same structure everywhere.

    Every rank must call it. In a single process, its own alone. `device` is one that the process group can send from.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    ranks = range(dist.get_world_size())
    if isinstance(value, Mapping):
        parts = {name: of_all_ranks(each, device) for name, each in value.items()}
        return [{name: part[rank] for name, part in parts.items()} for rank in ranks]
    if isinstance(value, list):
        entries = [of_all_ranks(each, device) for each in value]
        return [[entry[rank] for entry in entries] for rank in ranks]
    if isinstance(value, Tensor):
        mine = value.to(device).contiguous()
        found = [torch.empty_like(mine) for _ in ranks]
        dist.all_gather(found, mine)
        return [each.to(value.device) for each in found]
    if isinstance(value, bool | int | float):
        return [type(value)(each.item()) for each in of_all_ranks(torch.tensor(value), device)]
    return [value for _ in ranks]


def copied(value: Any, device: torch.device) -> Any:
    """The same with copies of its tensors, on a device."""
    if isinstance(value, Mapping):
        return {name: copied(each, device) for name, each in value.items()}
    if isinstance(value, list):
        return [copied(each, device) for each in value]
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
