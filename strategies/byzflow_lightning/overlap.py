"""Exchange while the backward pass still runs: each bucket leaves as DDP fills it, the rule waits for the last.

The gradients that come out of `backward` are then already the aggregate, as with plain DDP.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from byzflow import Aggregation, Operator
from byzflow.errors import NonFiniteRows, NotEnoughSenders
from byzflow_lightning.audit import StepAudit
from byzflow_lightning.exchange import Rule, from_all, held, padded, shard, start_gather


@dataclass
class Sent:
    """A bucket on its way."""

    buffer: Tensor
    row: Tensor  # the buffer, or a padded copy
    received: Tensor  # (n, width): this rank's part of everybody's bucket
    work: Any
    result: torch.futures.Future[Tensor]


class Overlap:
    """A communication hook of DDP: one asynchronous all_to_all a bucket, one aggregation for all of them."""

    def __init__(self, operator: Operator, group: dist.ProcessGroup) -> None:
        self.operator, self.group = operator, group
        self.rule: Rule = operator.explain
        self.audit = StepAudit(str(operator))
        self.state: Mapping[str, Any] = {}
        self._sent: list[Sent] = []
        self._rooms: dict[int, Tensor] = {}  # by bucket

    def hook(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Send the bucket off; with the last one, aggregate, and fulfil what was promised for all."""
        buffer, n = bucket.buffer(), self.group.size()
        row = buffer
        if padded(buffer.numel(), n) != buffer.numel():
            row = buffer.new_zeros(padded(buffer.numel(), n))
            row[: buffer.numel()] = buffer
        room = self._rooms.get(bucket.index())
        if room is None or room.shape != row.shape or room.dtype != row.dtype:  # DDP rebuilds its buckets once
            room = self._rooms[bucket.index()] = torch.empty_like(row)
        work = dist.all_to_all_single(room, row, group=self.group, async_op=True)
        devices = [buffer.device] if buffer.device.type == "cuda" else None
        result: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        self._sent.append(Sent(buffer, row, room.view(n, -1), work, result))
        if bucket.is_last():
            sent, self._sent = self._sent, []
            self._finish(sent)
        return result

    def _finish(self, sent: list[Sent]) -> None:
        start = time.perf_counter()
        for each in sent:
            each.work.wait()
        try:
            aggregation = self._aggregate(sent)
        except (NotEnoughSenders, NonFiniteRows) as problem:
            finite = torch.stack([each.buffer.isfinite().all() for each in sent]).all().to(torch.uint8).view(1)
            self.audit = StepAudit.failed(self.operator, problem, from_all(finite, self.group))
        else:
            self.state = aggregation.state
            self.audit = StepAudit.of(aggregation, frozenset(), time.perf_counter() - start)
        for each in sent:
            each.result.set_result(each.buffer)

    def _aggregate(self, sent: list[Sent]) -> Aggregation:
        """Run the rule on this rank's part of all buckets and gather the result into the buckets."""
        n, rank = self.group.size(), self.group.rank()
        here = [held(each.buffer.numel(), n, rank) for each in sent]
        rows = [{str(b): each.received[i, : here[b]] for b, each in enumerate(sent)} for i in range(n)]
        aggregation = self.rule(shard(rows, self.group), **self.state)
        works = []
        for b, each in enumerate(sent):
            mine = each.row.view(n, -1)[rank]
            mine[: here[b]] = aggregation.value[str(b)]
            works += start_gather(each.row, mine, self.group)
        for work in works:
            work.wait()
        for each in sent:
            if each.row is not each.buffer:
                each.buffer.copy_(each.row[: each.buffer.numel()])
        return aggregation
