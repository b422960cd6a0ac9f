"""The gradient of one optimiser's parameters as one flat row, and what the rule remembers of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from byzflow import Operator
from byzflow.errors import SpecError
from byzflow_lightning.exchange import Trust, held, padded


class Slot:
    """Room for one gradient and the rule's state, kept from step to step."""

    def __init__(self, optimizer: Optimizer, operator: Operator, trust: Trust, group: dist.ProcessGroup) -> None:
        self.optimizer, self.group = optimizer, group
        self.vectors = operator.vector_names  # names in the state that are cut up with the gradient
        self.sharded = trust == "shard"
        self.state: Mapping[str, Any] = {}
        self.parameters: list[Tensor] = []
        self.leaves: list[int] = []
        self.row = self.room = torch.empty(0)
        self.update()

    def update(self) -> None:
        """Look again which parameters train: callbacks unfreeze some later. What was remembered is of the old ones."""
        now = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        if len(now) == len(self.parameters) and all(a is b for a, b in zip(now, self.parameters, strict=True)):
            return
        self.parameters, self.leaves, self.state = now, [p.numel() for p in now], {}
        kinds = {p.dtype for p in now} or {torch.float32}
        wide = torch.float64 if torch.float64 in kinds else torch.float32
        dtype = kinds.pop() if len(kinds) == 1 else wide
        device = now[0].device if now else None
        self.row = torch.zeros(padded(self.d, self.group.size()), dtype=dtype, device=device)
        self.room = torch.empty_like(self.row) if self.sharded else self.row  # kept: new memory is slow

    @property
    def d(self) -> int:
        """Coordinates of the gradient."""
        return sum(self.leaves)

    def present(self, sound: bool) -> Tensor:
        """(parameters,) uint8: which have a gradient on this rank; none if it is not sound."""
        return torch.tensor([sound and p.grad is not None for p in self.parameters], dtype=torch.uint8).to(
            self.row.device
        )

    def fill(self, scale: float, absent: bool) -> None:
        """Copy the gradients into the row, 0 for one that is None; NaN if this rank is absent: it must not count."""
        if absent:
            self.row.fill_(torch.nan)
            return
        for p, place in zip(self.parameters, self.row[: self.d].split_with_sizes(self.leaves), strict=True):
            if p.grad is None:
                place.zero_()
            else:
                place.view(p.shape).copy_(p.grad)
        if scale != 1.0:
            self.row /= scale

    def spread(self, wanted: Sequence[bool], scale: float) -> None:
        """Copy the row into the gradients of the wanted parameters, those that some rank has one of."""
        if scale != 1.0:
            self.row *= scale
        for p, place, want in zip(
            self.parameters, self.row[: self.d].split_with_sizes(self.leaves), wanted, strict=True
        ):
            if want and p.grad is None:
                p.grad = place.view(p.shape).to(p.dtype, copy=True)
            elif want and p.grad is not None:
                p.grad.copy_(place.view(p.shape))

    def finite(self) -> Tensor:
        """(1,) uint8: whether the row is."""
        return torch.isfinite(self.row).all().to(torch.uint8).view(1)

    def save(self) -> dict[str, Any]:
        """The state, on the CPU; what is cut up is put together on rank 0. To be called on all ranks."""
        return {name: self._whole(value) if name in self.vectors else value for name, value in self.state.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `save` gave on rank 0. SpecError if it does not fit the gradient or the number of ranks."""
        self.state = {k: self._part(k, value) if k in self.vectors else value for k, value in state.items()}

    def _whole(self, value: Any) -> Any:
        if isinstance(value, list):  # one vector a rank
            return [self._whole(each) for each in value]
        if value is None or not self.sharded:
            return None if value is None else value.cpu()
        n = self.group.size()
        mine = value.new_zeros(self.row.numel() // n)
        mine[: value.numel()] = value
        parts = [torch.empty_like(mine) for _ in range(n)] if self.group.rank() == 0 else None
        dist.gather(mine, parts, group=self.group, group_dst=0)
        return value.cpu() if parts is None else torch.cat(parts)[: self.d].cpu()

    def _part(self, name: str, value: Any) -> Any:
        n, rank = self.group.size(), self.group.rank()
        if isinstance(value, list):
            if len(value) != n:
                raise SpecError(f"the checkpoint has {name} of {len(value)} ranks, and now there are {n}")
            return [self._part(name, each) for each in value]
        if value is None:
            return None
        if value.numel() != self.d:
            raise SpecError(f"the checkpoint's {name} has {value.numel()} coordinates, the gradient {self.d}")
        if self.sharded:
            start = rank * (self.row.numel() // n)
            value = value[start : start + held(self.d, n, rank)]
        return value.to(self.row.device, copy=True)
