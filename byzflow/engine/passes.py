"""The two passes over the rows: one sums the Gram over tiles of coordinates, one combines or ranks them.

Both read each coordinate once, hold one tile at a time and never stack the rows. On the CPU compiled kernels run
them where they lie (`byzflow.engine.kernels`); elsewhere, and for rules that are not made of ranks, torch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import CDLL

import torch
from torch import Tensor

from byzflow.engine import cuda, kernels
from byzflow.layout import Flat, Layout, Span
from byzflow.ranks import RankMean
from byzflow.rows import TILE_ELEMENTS, AnyRows, Mixed, Rows, Shifted, saturated


def width(rows: AnyRows, more: int = 0) -> int:
    """Coordinates a tile holds, for these rows and `more` vectors."""
    elements = TILE_ELEMENTS if rows.layout.device.type == "cpu" else TILE_ELEMENTS << 6
    return max(64, elements // max(1, rows.width + more))


def nonfinite(tile: Tensor) -> Tensor:
    """(n,) bool: rows of a tile with a NaN or an Inf, which shows in their extremes."""
    return ~torch.isfinite(tile.amax(1)) | ~torch.isfinite(tile.amin(1))


def gram_pass(rows: AnyRows, vectors: Sequence[AnyRows]) -> tuple[Tensor, Tensor]:
    """Inner products of the rows, the extra vectors and the origin, and which rows are not finite.

    Each tile is centred on its row of median norm: an attacker who takes that place has the norm of an honest
    row. Returns (p, p) float64 on the CPU, p = n + extra vectors + 1, and (n,) bool.
    """
    n, device = rows.n, rows.layout.device
    if isinstance(rows, Shifted) and not vectors:
        inner, bad = gram_pass(rows.rows, [rows.origin])
        return inner[:-1, :-1], bad  # the points' mutual differences are the same: only the origin lies elsewhere
    more = sum(each.n for each in vectors)
    lib = _library(rows.layout)
    if lib is not None and n + more < kernels.MAX_POINTS:
        return _compiled_gram(lib, rows, vectors)
    inner = torch.zeros((n + more + 1,) * 2, dtype=torch.float64, device=device)
    bad = torch.zeros(n, dtype=torch.bool, device=device)
    for span in rows.layout.spans(width(rows, more)):
        tile = rows.tile(span)
        bad_here = nonfinite(tile)
        bad |= bad_here
        tile = saturated(tile).masked_fill_(bad_here[:, None], 0)  # 0 * inf is NaN: gone before any product
        extra = [saturated(each.tile(span)) for each in vectors]
        points = torch.cat([tile, *extra, tile.new_zeros(1, tile.shape[1])])
        points -= _reference(tile, bad_here)
        inner.addmm_(points, points.T)
    inner = inner.cpu()  # a GPU is waited for here alone
    return (inner + inner.T) / 2, bad.cpu()  # exactly symmetric, so that equal distances tie exactly


def _reference(tile: Tensor, bad: Tensor) -> Tensor:
    """(1, b): the row of median norm among those that are not bad; such a row is 0 here if all are."""
    norms = torch.linalg.vector_norm(tile, dim=1).masked_fill(bad, torch.inf)
    place = ((~bad).sum() - 1).clamp(min=0) // 2
    return tile.index_select(0, norms.argsort().index_select(0, place.view(1)))


def norm_pass(rows: AnyRows) -> tuple[Tensor, Tensor]:
    """As `gram_pass` without extra vectors, for rules that need norms alone: the diagonal, around the origin."""
    squares = torch.zeros(rows.n, dtype=torch.float64, device=rows.layout.device)
    bad = torch.zeros(rows.n, dtype=torch.bool, device=rows.layout.device)
    lib = _library(rows.layout)
    if lib is not None:
        for _, tensors in _pieces([rows], rows.layout):
            part, found = kernels.norms(lib, tensors)
            squares += part
            bad |= found
    else:
        for span in rows.layout.spans(width(rows)):
            tile = rows.tile(span)
            bad |= nonfinite(tile)
            squares += saturated(tile).square().sum(1)
    return torch.diag(torch.cat([squares.masked_fill(bad, 0), squares.new_zeros(1)])).cpu(), bad.cpu()


def column_pass(
    rows: AnyRows, columns: Callable[[Tensor], Tensor], count: int = 1, rule: RankMean | None = None
) -> tuple[list[Flat], Tensor]:
    """A column rule on every tile: `count` answers, and (n,) bool of rows that are not finite.

    Where a row is not finite the answers are of no use; the caller passes the others again. `rule` is the same as
    `columns`, as data for compiled kernels.
    """
    lib = _library(rows.layout)
    if lib is not None and rule is not None and rows.n <= kernels.MAX_POINTS:
        return _compiled_pass(lib, rows, rule)
    bad = torch.zeros(rows.n, dtype=torch.bool, device=rows.layout.device)
    answers = rows.layout.empty(count)
    for span in rows.layout.spans(width(rows)):
        if rule is not None and isinstance(rows, Rows) and rows.layout.device.type == "cuda":
            lie = [source[span.leaf][span.start : span.stop] for source in rows.sources]
            if cuda.serves(lie, rule):
                bad |= cuda.run(lie, rule, answers[0][span.leaf][span.start : span.stop])
                continue
        tile = rows.tile(span)
        bad |= nonfinite(tile)
        for answer, values in zip(answers, columns(tile).view(count, -1), strict=True):
            answer[span.leaf][span.start : span.stop].copy_(values)
    return answers, bad.cpu()


def combine_pass(rows: AnyRows) -> list[Flat]:
    """Every row as an answer of its own."""
    lib = _library(rows.layout)
    answers = rows.layout.empty(rows.n)
    if (
        lib is not None
        and isinstance(rows, Mixed)
        and rows.width <= kernels.MAX_POINTS
        and (_compiled_combine(lib, rows, answers) or rows.n == 1)
    ):
        return answers
    # or else a kept row is not finite: 0 * inf is NaN there, and here it touches only the rows it has a share in
    for span in rows.layout.spans(width(rows)):
        for answer, values in zip(answers, rows.tile(span), strict=True):
            answer[span.leaf][span.start : span.stop].copy_(values)
    return answers


def _library(layout: Layout) -> CDLL | None:
    return kernels.library() if layout.device.type == "cpu" else None


def _pieces(parts: Sequence[AnyRows], layout: Layout) -> Iterator[tuple[Span, list[Tensor]]]:
    """All coordinates of all rows of the parts, as flat contiguous tensors of one dtype that the kernels take.

    A leaf where it lies, if it can be read there; what cannot (half precision, strides, what is computed) comes tile
    by tile, and the other parts are cut to fit.
    """
    dtype = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    for k, leaf in enumerate(layout.leaves):
        lie = [_lying(part, k, dtype) for part in parts]
        copied = sum(part.width for part, there in zip(parts, lie, strict=True) if there is None)
        wide = max(64, TILE_ELEMENTS // copied) if copied else max(1, leaf.numel)
        for start in range(0, leaf.numel, wide):
            span = Span(k, start, min(start + wide, leaf.numel))
            pieces: list[Tensor] = []
            for part, there in zip(parts, lie, strict=True):
                pieces += part.tile(span).to(dtype) if there is None else [row[start : span.stop] for row in there]
            yield span, pieces


def _lying(part: AnyRows, k: int, dtype: torch.dtype) -> list[Tensor] | None:
    """Leaf k of every row of a part, if the kernels can read it where it is."""
    if not isinstance(part, Rows):
        return None
    leaves = [source[k] for source in part.sources]
    return leaves if all(leaf.dtype == dtype and leaf.is_contiguous() for leaf in leaves) else None


def _compiled_pass(lib: CDLL, rows: AnyRows, rule: RankMean) -> tuple[list[Flat], Tensor]:
    parts, weights = (rows.parts, rows.weights) if isinstance(rows, Mixed) else ([rows], None)
    answers = rows.layout.empty(1)
    bad = torch.zeros(rows.n, dtype=torch.bool)
    if not parts:
        return [[leaf.zero_() for leaf in answer] for answer in answers], bad
    for span, tensors in _pieces(parts, rows.layout):
        with _room(answers, span, tensors[0].dtype) as out:
            found = kernels.run(lib, tensors, weights, rule, out[0])
        if weights is None:
            bad |= found
    return answers, bad


def _compiled_combine(lib: CDLL, rows: Mixed, answers: list[Flat]) -> bool:
    """Writes the answers; whether all of them are finite."""
    if not rows.parts:
        for answer in answers:
            for leaf in answer:
                leaf.zero_()
        return True
    finite = True
    for span, tensors in _pieces(rows.parts, rows.layout):
        with _room(answers, span, tensors[0].dtype) as out:
            finite &= kernels.combine(lib, tensors, rows.weights, out)
    return finite


@contextmanager
def _room(answers: list[Flat], span: Span, dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """The place of a span in the answers, or room of another dtype that is copied there in the end."""
    out = [answer[span.leaf][span.start : span.stop] for answer in answers]
    if out[0].dtype == dtype:
        yield out
        return
    room = [torch.empty(span.stop - span.start, dtype=dtype) for _ in out]
    yield room
    for target, values in zip(out, room, strict=True):
        target.copy_(values)


def _compiled_gram(lib: CDLL, rows: AnyRows, vectors: Sequence[AnyRows]) -> tuple[Tensor, Tensor]:
    points = rows.n + sum(each.n for each in vectors) + 1
    inner = torch.zeros(points, points, dtype=torch.float64)
    bad = torch.zeros(rows.n, dtype=torch.bool)
    for _, tensors in _pieces([rows, *vectors], rows.layout):
        part, found = kernels.gram(lib, tensors, rows.n)
        inner += part
        bad |= found
    return inner, bad
