"""Column rules on a GPU: one Triton kernel that sorts a block of columns where the rows lie.

Triton comes with torch's CUDA builds. Where it is missing, or for rows that it does not take, the same rule runs on
torch operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from byzflow.ranks import Deviated, NearestMean, RankMean

MOST = 256  # rows: a block of columns must fit into the registers
ELEMENTS = 8192  # of a block
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@cache
def kernel() -> Any | None:
    """The compiled kernel, None where there is no Triton."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    @triton.jit  # type: ignore[untyped-decorator]
    def rank(  # type: ignore[no-untyped-def]
        pointers,
        out,
        bad,
        n,
        d,
        low,
        high,
        LIKE: tl.constexpr,
        CLAMP: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        row = tl.arange(0, ROWS)
        column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        base = tl.load(pointers + row, mask=row < n, other=0).to(tl.pointer_type(LIKE))
        inside = (row < n)[None, :] & (column < d)[:, None]
        x = tl.load(base[None, :] + column[:, None], mask=inside, other=0.0)
        x = x.to(tl.float64) if tl.float64 == LIKE else x.to(tl.float32)
        odd = (x - x) != 0.0  # true for NaN and Inf alone
        tl.atomic_or(bad + row, tl.max(odd.to(tl.int32), axis=0), mask=row < n)
        x = tl.where((row < n)[None, :], tl.where(x != x, float("inf"), x), float("inf"))
        x = tl.sort(x, dim=1).to(tl.float64)
        kept = (row >= low) & (row < high)
        total = tl.sum(tl.where(kept[None, :], x, 0.0), axis=1)
        if CLAMP:
            first = tl.sum(tl.where((row == low)[None, :], x, 0.0), axis=1)
            last = tl.sum(tl.where((row == high - 1)[None, :], x, 0.0), axis=1)
            total = (total + low * first + (n - high) * last) / n
        else:
            total = total / (high - low)
        tl.store(out + column, total.to(LIKE), mask=column < d)

    return rank


def serves(rows: Sequence[Tensor], rule: RankMean) -> bool:
    """If the kernel takes these rows and this rule."""
    same = all(row.dtype == rows[0].dtype and row.is_contiguous() for row in rows)
    plain = len(rows) <= MOST and not isinstance(rule, NearestMean | Deviated) and rows[0].dtype in DTYPES
    return same and plain and rows[0].is_cuda and kernel() is not None


def run(rows: Sequence[Tensor], rule: RankMean, out: Tensor) -> Tensor:
    """Rank flat contiguous rows of one dtype into `out` (d,); (n,) bool of rows with NaN or Inf, on the device."""
    import triton
    import triton.language as tl

    like = {
        torch.float16: tl.float16,
        torch.bfloat16: tl.bfloat16,
        torch.float32: tl.float32,
        torch.float64: tl.float64,
    }
    n, d, device = len(rows), rows[0].numel(), rows[0].device
    height = triton.next_power_of_2(n)
    columns = max(16, ELEMENTS // height)
    pointers = torch.tensor([row.data_ptr() for row in rows], dtype=torch.int64, device=device)
    bad = torch.zeros(n, dtype=torch.int32, device=device)
    launch = kernel()
    assert launch is not None
    launch[(triton.cdiv(d, columns),)](
        pointers, out, bad, n, d, rule.low, rule.high,
        LIKE=like[out.dtype], CLAMP=rule.code == 2, ROWS=height, COLUMNS=columns,
    )  # fmt: skip
    return bad.bool()
