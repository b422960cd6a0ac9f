"""Groups of nodes whose vectors point the same way, and who is in the middle of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from byzflow.gossip.effects import NodeId
from byzflow.ranks import middle

PASSES = 10


def cosine_distances(vectors: Mapping[NodeId, Any]) -> tuple[list[NodeId], Tensor]:
    """The nodes whose vectors are finite and alike in shape, and (n, n) float64: 1 - cosine, from 0 to 2.

    Directions are those from the coordinate-wise median of all; who is exactly there is at 1 from everyone.
    """
    shapes = [each.shape for each in vectors.values() if isinstance(each, Tensor)]
    usual = max(set(shapes), key=shapes.count, default=None)
    rows = {node: each.detach().double().flatten() for node, each in vectors.items()
            if isinstance(each, Tensor) and each.shape == usual}  # fmt: skip
    rows = {node: each for node, each in rows.items() if bool(torch.isfinite(each).all())}
    if not rows:
        return [], torch.zeros(0, 0, dtype=torch.float64)
    x = torch.stack(list(rows.values()))
    x = x - middle(x)
    x = x / x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)  # 1e200 squared is Inf
    unit = x / x.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return list(rows), (1 - unit @ unit.T).clamp(0, 2).fill_diagonal_(0)


def medoid(distance: Tensor, places: Sequence[int]) -> int:
    """Of these places the one that is nearest to the nearer half of them; the first of equal ones."""
    among = distance[list(places)][:, list(places)]
    near = among.sort(1).values[:, : len(places) // 2 + 1].sum(1)
    return places[int(near.argmin())]


def groups_of(distance: Tensor, count: int, least: int) -> list[list[int]]:
    """Up to `count` groups of `least` or more places each, around medoids.

    A medoid has `least` - 1 others near: fewer attackers than that, however alike, make no group of their own.
    Deterministic, and always one group at least; medoids move at most 10 times.
    """
    n = len(distance)
    least = max(1, min(least, n))
    crowd = distance.sort(1).values[:, :least].sum(1)
    dense = crowd <= crowd.median() + 1e-12
    medoids = [int(crowd.argmin())]
    while len(medoids) < min(count, n // least):
        apart = distance[:, medoids].min(1).values.masked_fill(~dense, -1.0)
        if float(apart.max()) <= 0:
            break
        medoids.append(int(apart.argmax()))
    for _ in range(PASSES):
        groups = _assigned(distance, medoids)
        moved = [medoid(distance, group) for group in groups]
        if moved == medoids:
            break
        medoids = moved
    while len(medoids) > 1 and min(map(len, groups)) < least:
        smallest = min(range(len(groups)), key=lambda place: len(groups[place]))
        medoids.pop(smallest)
        groups = _assigned(distance, medoids)
    return groups


def _assigned(distance: Tensor, medoids: list[int]) -> list[list[int]]:
    """Each place with its nearest medoid; medoids stay with themselves."""
    nearest = distance[:, medoids].argmin(1).tolist()
    for group, place in enumerate(medoids):
        nearest[place] = group
    return [[place for place, group in enumerate(nearest) if group == number] for number in range(len(medoids))]
