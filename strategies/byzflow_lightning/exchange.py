"""One gradient a rank in, the robust aggregate on every rank out, over a torch.distributed process group.

shard    all_to_all: rank r gets coordinates r of all n gradients; the operator runs on that shard, its sums over all
         ranks; all_gather of the results. Each rank sends 2(n - 1)/n of a gradient, as a ring all_reduce does.
gather   all_gather of the n gradients; every rank runs the operator on all of it. n - 1 gradients sent, n held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from byzflow import Aggregation, Operator
from byzflow.rows import Rows

Trust = Literal["shard", "gather"]


def padded(d: int, n: int) -> int:
    """The smallest multiple of n that is at least d, and not 0."""
    return max(1, -(-d // n)) * n


def aggregate(
    operator: Operator,
    row: Tensor,
    leaves: Sequence[int],
    trust: Trust,
    group: dist.ProcessGroup,
    extras: Mapping[str, Any],
) -> Aggregation:
    """Replace this rank's gradient, in place, by the aggregate of all; also returned, with the audit.

    `row` is flat, of `padded(d, n)` elements; `leaves` are the sizes of the parameters in it and sum to d. To be
    called on all ranks. Raises what the operator raises, the same on every rank, and leaves `row` as it was then.
    """
    return (_sharded if trust == "shard" else _gathered)(operator, row, leaves, group, extras)


def _sharded(
    operator: Operator, row: Tensor, leaves: Sequence[int], group: dist.ProcessGroup, extras: Mapping[str, Any]
) -> Aggregation:
    n = group.size()
    received = torch.empty_like(row)
    dist.all_to_all_single(received, row, group=group)
    parts = received.view(n, -1)
    here = held(sum(leaves), n, group.rank())
    result = operator.explain(shard(parts[:, :here].unbind(), group), **extras)
    room = parts[0]  # has been read
    room[:here] = result.value
    dist.all_gather_into_tensor(row, room, group=group)
    return result


def _gathered(
    operator: Operator, row: Tensor, leaves: Sequence[int], group: dist.ProcessGroup, extras: Mapping[str, Any]
) -> Aggregation:
    n, d = group.size(), sum(leaves)
    everything = row.new_empty(n * row.numel())
    dist.all_gather_into_tensor(everything, row, group=group)
    gradients = everything.view(n, -1)[:, :d]
    if operator.kind != "rows":
        result = operator.explain(gradients, **extras)
        row[:d] = result.value
        return result
    names = [str(k) for k in range(len(leaves))]  # a rule that looks at parameters one by one
    result = operator.explain([dict(zip(names, g.split(list(leaves)), strict=True)) for g in gradients], **extras)
    torch.cat([result.value[name] for name in names], out=row[:d])
    return result


def held(d: int, n: int, rank: int) -> int:
    """How many of d coordinates the shard of a rank has; the last shards may be short, or empty."""
    width = padded(d, n) // n
    return min(width, max(0, d - rank * width))


def shard(rows: Sequence[Any], group: dist.ProcessGroup) -> Rows:
    """n pieces of gradients as rows whose other coordinates are on the other ranks of the group."""
    made = Rows.of(list(rows))
    device = made.layout.device

    def total(part: Tensor) -> Tensor:
        part = part.to(device)
        dist.all_reduce(part, group=group)
        return part.cpu()

    return made.shard(total)


def from_all(mine: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(n, k): a flat tensor of each rank, as many elements on all."""
    everything = mine.new_empty(group.size() * mine.numel())
    dist.all_gather_into_tensor(everything, mine, group=group)
    return everything.view(group.size(), -1)
