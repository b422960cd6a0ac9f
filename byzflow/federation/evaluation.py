"""How good a model is on data that it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from byzflow.federation.datasets import Split
from byzflow.federation.training import Loss, pair

SIZE = 1024  # samples at a time


@torch.no_grad()
def evaluate(module: nn.Module, data: Any, loss: Loss | None = None) -> dict[str, float]:
    """The mean loss over all samples and, where y holds labels, the share that is right; the module stays as it was.

    `data` is a `Split`, of which the test set counts, a pair (x, y), or a loader of pairs. NaN without samples.
    """
    training = module.training
    module.eval()
    count, right, total, labels = 0, 0, 0.0, True
    try:
        for x, y in _parts(data):
            scores = module(x)
            total += float((loss or functional.cross_entropy)(scores, y)) * len(y)
            count += len(y)
            labels = labels and not y.is_floating_point() and scores.ndim == 2
            right += int((scores.argmax(1) == y).sum()) if labels else 0
    finally:
        module.train(training)
    found = {"loss": total / count if count else math.nan}
    return {"accuracy": right / count if count else math.nan, **found} if labels else found


def _parts(data: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of at most SIZE samples, none without any."""
    if isinstance(data, Split):
        data = (data.test_x, data.test_y)
    match data:
        case (Tensor() as x, Tensor() as y):
            yield from ((x[i : i + SIZE], y[i : i + SIZE]) for i in range(0, len(y), SIZE))
        case _:
            yield from (pair(batch) for batch in data)
