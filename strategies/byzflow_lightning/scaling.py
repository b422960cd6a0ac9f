"""fp16's loss scale: whether a step is skipped must be decided by the aggregate, the same on every rank.

Each rank's scaler looks at its own gradient. One rank's NaN would make that replica skip a step which the others
take, and its scale part from theirs.
"""

from __future__ import annotations

from typing import Any

import torch


def scale_in(scaler: Any, optimizer: torch.optim.Optimizer) -> float:
    """The scale that is still in the gradients: fused optimisers unscale inside their step."""
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() and fused else 1.0


def settle(scaler: Any, optimizer: torch.optim.Optimizer, skip: bool) -> None:
    """Make the scaler judge the gradients as they are now; if `skip`, it skips the step and lowers the scale."""
    if not scaler.is_enabled():
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if skip:
        for p in parameters:
            p.grad = torch.full_like(p, torch.inf)
    scaler._check_inf_per_device(optimizer)  # what `unscale_` recorded is of this rank's own gradient
