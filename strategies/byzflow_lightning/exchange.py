"""One gradient a rank in, the robust aggregate on every rank out, over a torch.distributed process group.

shard    all_to_all: rank r gets coordinates r of all n gradients; the operator runs on that shard, its sums over all
         ranks; then everybody gets every result. A rank sends 2(n - 1)/n of a gradient, as in a ring all_reduce.
gather   everybody gets the n gradients and runs the operator on all of them. n - 1 gradients sent, n held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from byzflow import Aggregation
from byzflow.rows import Rows

Trust = Literal["shard", "gather"]
Rule = Callable[..., Aggregation]
"""rule(rows, **extras): an operator's `run` or `explain`."""


def padded(d: int, n: int) -> int:
    """The smallest multiple of n that is at least d, and not 0."""
    return max(1, -(-d // n)) * n


def held(d: int, n: int, rank: int) -> int:
    """How many of d coordinates the shard of a rank has; the last shards may be short, or empty."""
    width = padded(d, n) // n
    return min(width, max(0, d - rank * width))


def sharded(
    rule: Rule, row: Tensor, room: Tensor, d: int, group: dist.ProcessGroup, state: Mapping[str, Any]
) -> Aggregation:
    """Replace this rank's gradient, in place, by the aggregate of all. To be called on all ranks.

    `row` is flat, of `padded(d, n)` elements, and `room` as large. Raises what the rule raises, the same on every
    rank, and leaves `row` as it was then. The value in the answer is this rank's shard.
    """
    n, rank = group.size(), group.rank()
    dist.all_to_all_single(room, row, group=group)
    parts, here = room.view(n, -1), held(d, n, rank)
    result = rule(shard(parts[:, :here].unbind(), group), **state)
    mine = row.view(n, -1)[rank]
    mine[:here] = result.value
    for work in start_gather(row, mine, group):
        work.wait()
    return result


def gathered(
    rule: Rule, row: Tensor, leaves: Sequence[int], group: dist.ProcessGroup, state: Mapping[str, Any]
) -> Aggregation:
    """As `sharded`, with whole gradients: `leaves` are the sizes of the parts that the rule sees, and sum to d."""
    d = sum(leaves)
    gradients = from_all(row, group)[:, :d]
    if len(leaves) == 1:
        result = rule(gradients, **state)
        row[:d] = result.value
        return result
    names = [str(k) for k in range(len(leaves))]
    result = rule([dict(zip(names, each.split_with_sizes(list(leaves)), strict=True)) for each in gradients], **state)
    torch.cat([result.value[name] for name in names], out=row[:d])
    return result


def shard(rows: Sequence[Any], group: dist.ProcessGroup) -> Rows:
    """n pieces of gradients as rows whose other coordinates are on the other ranks of the group."""
    made = Rows.of(list(rows))
    device = made.layout.device

    def total(part: Tensor) -> Tensor:
        part = part.to(device)
        dist.all_reduce(part, group=group)
        return part.cpu()

    return made.shard(total)


def start_gather(row: Tensor, mine: Tensor, group: dist.ProcessGroup) -> list[Any]:
    """Fill `row` with the `mine` of all ranks, in order; `mine` may be its own place in there. To be waited for."""
    n, rank = group.size(), group.rank()
    if dist.get_backend(group) != "gloo":
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the newer name first
        return [gather(row, mine, group=group, async_op=True)]
    # gloo's all_gather takes new memory each time: three times as long as the n - 1 messages themselves
    places = row.view(n, -1)
    works = [dist.isend(mine, group=group, group_dst=(rank + k) % n) for k in range(1, n)]
    works += [dist.irecv(places[rank - k], group=group, group_src=(rank - k) % n) for k in range(1, n)]
    if places[rank].data_ptr() != mine.data_ptr():
        places[rank].copy_(mine)
    return works


def from_all(mine: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(n, k): a flat tensor of each rank, as many elements on all."""
    everything = mine.new_empty(group.size() * mine.numel())
    for work in start_gather(everything, mine, group):
        work.wait()
    return everything.view(group.size(), -1)
