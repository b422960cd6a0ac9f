"""What an audit asks of the rows besides the weights of a span rule: shares in a column rule, and distances."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from byzflow.engine.passes import width
from byzflow.layout import Span
from byzflow.rows import AnyRows, Rows, combined, saturated

COLUMNS = 2048  # that are looked at
PLACES = 64  # that they are taken from


def column_weights(
    parts: AnyRows | Sequence[AnyRows], mixing: Tensor | None, columns: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """(1, rows of the parts): the mean derivative of a column rule by each row, over a sample of coordinates.

    For rules of ranks that is exactly the share of coordinates in which a row was taken. None where the rule is
    not differentiable.
    """
    parts = [parts] if isinstance(parts, AnyRows) else parts
    layout = parts[0].layout
    spans = list(layout.spans(layout.d // PLACES if layout.d > COLUMNS else COLUMNS))  # of a small model, whole leaves
    spans = spans[:: max(1, len(spans) // (2 * PLACES))]  # of many small leaves, some
    wide = max(1, COLUMNS // max(1, len(spans)))
    seen, unknown = 0, torch.tensor(False)
    with torch.inference_mode(False), torch.enable_grad():
        mixing = None if mixing is None else mixing.clone()  # autograd takes nothing made in inference mode
        total = torch.zeros(parts[0].n if mixing is None else mixing.shape[0], dtype=torch.float64)
        for leaf, start, stop in spans:
            span = Span(leaf, start, min(start + wide, stop))
            x = torch.cat([saturated(part.tile(span)) for part in parts])
            x = (x if mixing is None else combined(mixing.to(x.device), x)).requires_grad_()
            out = columns(x)
            if not out.requires_grad:
                unknown = torch.tensor(True)
                break
            (share,) = torch.autograd.grad(out.sum(), x)
            if not bool(torch.isfinite(share).all()):  # no derivative here, by rows that were kept with NaN or Inf
                unknown = torch.tensor(True)
                break
            total += share.sum(1).cpu()
            seen += out.numel()
    total, counted, unknown = layout.everywhere(total, torch.tensor(seen), unknown)
    if bool(unknown):
        return None
    mean = (total / counted.clamp(min=1)).unsqueeze(0)
    return mean if mixing is None else mean @ mixing


def distances(rows: AnyRows, value: Rows) -> Tensor:
    """(n,) float64: Euclidean distances of the rows to the one row `value`; one pass, NaN for a row that holds NaN.

    Differences are taken before they are squared: a large offset that all rows share costs no precision.
    """
    squares = torch.zeros(rows.n, dtype=torch.float64, device=rows.layout.device)
    for span in rows.layout.spans(width(rows)):
        difference = saturated(rows.tile(span)).sub_(saturated(value.tile(span)))
        squares += difference.square_().sum(1)
    (squares,) = rows.layout.everywhere(squares.cpu())
    return squares.sqrt()
