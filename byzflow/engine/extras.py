"""Extra arguments that speak of the rows one by one, made to fit the rows that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from byzflow.errors import ExtraError


def permutation(value: Any, kept: Sequence[int], n: int) -> Tensor:
    """(n,) ints, an order of the input rows: rejected rows drop out, the order stays."""
    order = torch.as_tensor(value).flatten().tolist()
    if sorted(order) != list(range(n)):
        raise ExtraError(f"permutation must hold each of 0 to {n - 1} once, got {len(order)} entries")
    place = {row: k for k, row in enumerate(kept)}
    return torch.tensor([place[row] for row in order if row in place], dtype=torch.long)


def sample_weights(value: Any, kept: Sequence[int], n: int) -> Tensor:
    """(n,) float64, one finite number >= 0 a row, not all 0 over the rows that are left."""
    weights = torch.as_tensor(value, dtype=torch.float64).flatten()
    if weights.numel() != n:
        raise ExtraError(f"sample_weights needs one number a row: {n}, got {weights.numel()}")
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ExtraError("sample_weights must be finite and >= 0: they are claims of the senders, check and cap them")
    weights = weights[list(kept)]
    if not bool(weights.sum() > 0):
        raise ExtraError("sample_weights are 0 for every row that is left")
    return weights


def weights(value: Any, kept: Sequence[int], n: int) -> Tensor:
    """(n,) float64, one finite number a row: a row of a mixing matrix. Rejected rows take theirs away.

    They sum to 1, or to less where neighbours are silent, who then count as if they had sent the own row.
    """
    row = torch.as_tensor(value, dtype=torch.float64).flatten()
    if row.numel() != n:
        raise ExtraError(f"weights needs one number a row: {n}, got {row.numel()}")
    if not 0 < float(row.sum()) <= 1 + 1e-6:
        raise ExtraError(
            f"weights must be finite and sum to 1 at most, the own row's among them; they sum to {float(row.sum()):g}"
        )
    return row[list(kept)]


PER_ROW = {"permutation": permutation, "sample_weights": sample_weights, "weights": weights}


class PerRow(list[Any]):
    """A part of a state that holds one entry a row; None for a row that has none yet."""


def extras_for(extras: Mapping[str, Any], kept: Sequence[int], n: int) -> dict[str, Any]:
    """The extras of a call for the kept ones of n rows."""
    return {
        name: PER_ROW[name](value, kept, n) if name in PER_ROW and value is not None else value
        for name, value in extras.items()
    }


def spread(state: Mapping[str, Any], kept: Sequence[int], n: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose per-row parts have an entry for each of n input rows; a rejected row keeps what was given."""
    place = {row: k for k, row in enumerate(kept)}

    def entry(name: str, values: PerRow, row: int) -> Any:
        return values[place[row]] if row in place else given.get(name, [None] * n)[row]

    return {
        name: PerRow(entry(name, value, row) for row in range(n)) if isinstance(value, PerRow) else value
        for name, value in state.items()
    }
