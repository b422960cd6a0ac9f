"""What workers send of the tiles that they hold: checked, for any of them may lie, and put together.

A worker is believed in what it says of its own coordinates, which nobody else can check. All else has to fit: the form
of what it sends, finite sums, and what all of them compute alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from byzflow.actors.backend import Backend
from byzflow.engine.extras import PerRow
from byzflow.engine.report import Aggregation
from byzflow.errors import ActorError, RowsError
from byzflow.layout import Layout, Leaf, Span
from byzflow.operators import Operator
from byzflow.rows import FLOATS

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
ALIKE = ("many", "operator", "n", "weights", "distances", "rejected", "bound_exceeded", "state")
"""What every tile's part of a run says, and no two differently."""


@dataclass(frozen=True)
class Place:
    """Where a tile is, and the coordinates that it has."""

    worker: str
    backend: Backend
    number: int
    spans: tuple[Span, ...]

    async def ask(self, method: str, *arguments: Any) -> Any:
        """A method of the tile; what it raises is noted to be of this worker."""
        try:
            return await self.backend.invoke(self.number, method, arguments, {})
        except Exception as error:
            error.add_note(f"on worker {self.worker!r}")
            raise


def laid_out(places: Sequence[Place], shapes: Sequence[Any]) -> tuple[list[Place], Layout, int]:
    """The places with their spans, the layout of the rows, and n, from what the tiles say of themselves.

    Raises ActorError, and RowsError for tiles that do not fit each other.
    """
    found: list[Place] = []
    start, dtype = 0, None
    for place, shape in zip(places, shapes, strict=True):
        match shape:
            case [int(n), [*leaves]] if n > 0 and all(map(_is_leaf, leaves)):
                pass
            case _:
                raise ActorError(f"worker {place.worker!r} holds no tile: it says {_shown(shape)} of its shape")
        if n != shapes[0][0]:
            raise RowsError(
                f"the tile on {place.worker!r} has {n} rows, the one on {places[0].worker!r} has {shapes[0][0]}"
            )
        spans = []
        for size, name in leaves:
            spans.append(Span(0, start, start + size))
            start += size
            dtype = DTYPES[name] if dtype is None else torch.promote_types(dtype, DTYPES[name])
        found.append(replace(place, spans=tuple(spans)))
    if not start or dtype is None:
        raise RowsError("the rows have no coordinates: there is nothing to aggregate")
    return found, Layout((Leaf(None, (start,), dtype, start),), torch.device("cpu")), shapes[0][0]


def added(places: Sequence[Place], parts: Sequence[Any]) -> Tensor:
    """The sum of what each tile brings to it, flat and in float64. Raises ActorError."""
    shapes = Counter(part.shape for part in parts if isinstance(part, Tensor)).most_common(1)
    shape = shapes[0][0] if shapes else torch.Size()
    total = torch.zeros(shape, dtype=torch.float64)
    for place, part in zip(places, parts, strict=True):
        if not isinstance(part, Tensor) or part.dtype != torch.float64 or part.shape != shape:
            raise ActorError(f"worker {place.worker!r} sent no part of this sum: {_shown(part)}, not {tuple(shape)}")
        total += part.detach()
        if not bool(torch.isfinite(total).all()):
            raise ActorError(f"worker {place.worker!r} sent NaN, Inf or too large numbers as its part of a sum")
    return total


def joined(places: Sequence[Place], parts: Sequence[Any], layout: Layout, rule: Operator) -> Aggregation:
    """The tiles' parts of a run as one. Raises ActorError."""
    for place, part in zip(places, parts, strict=True):
        if not _is_part(part, rule):
            raise ActorError(f"worker {place.worker!r} sent no part of a result of {rule}: {_shown(part)}")
        for name in ALIKE:
            if not _same(part[name], parts[0][name]):
                raise ActorError(
                    f"workers {places[0].worker!r} and {place.worker!r} differ in {name!r} of one result of {rule}: "
                    f"{_shown(parts[0][name])} and {_shown(part[name])}; one of them computes something else"
                )
    first = parts[0]
    state: dict[str, Any] = dict(first["state"])
    for name, (many, present, _) in first["vectors"].items():
        found = [part["vectors"].get(name, [None, None, []]) for part in parts]
        if any(each[:2] != [many, present] for each in found):
            raise ActorError(f"workers differ in which vectors of {name!r} there are: {[each[:2] for each in found]}")
        whole = iter(_whole(places, [each[2] for each in found], sum(present), layout))
        values = [layout.restore(next(whole)) if there else None for there in present]
        state[name] = PerRow(values) if many else values[0]
    answers = _whole(places, [part["value"] for part in parts], None if first["many"] else 1, layout)
    return Aggregation(
        value=layout.restore_all(answers) if first["many"] else layout.restore(answers[0]),
        operator=first["operator"],
        n=first["n"],
        weights=first["weights"],
        distances=first["distances"],
        rejected=tuple(first["rejected"]),
        bound_exceeded=first["bound_exceeded"],
        state=state,
    )


def _whole(
    places: Sequence[Place], parts: Sequence[Sequence[Any]], count: int | None, layout: Layout
) -> list[list[Tensor]]:
    """`count` answers of all coordinates, from each tile's (count, b) leaves; None: as many as the tiles have.

    Room is made for them only once all of them have come: what a worker says of its sizes costs nothing.
    """
    blocks: list[tuple[Span, Tensor]] = []
    for place, leaves in zip(places, parts, strict=True):
        if len(leaves) != len(place.spans):
            raise ActorError(f"worker {place.worker!r} sent {len(leaves)} leaves of a result, and holds another number")
        for span, block in zip(place.spans, leaves, strict=True):
            size, dtype = span.stop - span.start, layout.leaves[span.leaf].dtype
            if not size:
                continue
            if count is None and isinstance(block, Tensor) and block.ndim == 2:
                count = len(block)
            fits = isinstance(block, Tensor) and block.shape == (count, size) and block.dtype in FLOATS
            if not fits or torch.promote_types(block.dtype, dtype) != dtype:
                raise ActorError(
                    f"worker {place.worker!r} sent no part of this result: {_shown(block)}, not {dtype} of shape "
                    f"{(count, size)}"
                )
            blocks.append((span, block.detach()))
    answers = layout.empty(count or 0)
    for span, block in blocks:
        for answer, values in zip(answers, block, strict=True):
            answer[span.leaf][span.start : span.stop].copy_(values)
    return answers


def _is_leaf(leaf: Any) -> bool:
    match leaf:
        case [int(size), str(name)]:
            return size >= 0 and name in DTYPES
    return False


def _is_part(part: Any, rule: Operator) -> bool:
    """If it has the form of what `Tile.run` returns, with finite weights."""
    match part:
        case {
            "many": bool(),
            "value": [*_],
            "operator": str(),
            "n": int(),
            "weights": weights,
            "distances": distances,
            "rejected": [*rejected],
            "bound_exceeded": bool(),
            "state": dict(state),
            "vectors": dict(vectors),
        }:
            return (
                (weights is None or (_is_floats(weights) and bool(torch.isfinite(weights).all())))
                and (distances is None or (_is_floats(distances) and not bool(distances.isnan().any())))
                and all(isinstance(row, int) and row >= 0 for row in rejected)
                and state.keys() <= rule.accepts
                and vectors.keys() <= rule.vector_names
                and all(map(_is_vectors, vectors.values()))
            )
    return False


def _is_floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64 and not value.requires_grad


def _is_vectors(value: Any) -> bool:
    """If it is of the form: many or one, which there are, and their values."""
    match value:
        case [bool(many), [*present], [*_]]:
            return (many or len(present) == 1) and all(isinstance(there, int) and there in (0, 1) for there in present)
    return False


def _same(one: Any, other: Any) -> bool:
    """If two workers say the same; numbers to the rounding of other machines."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return torch.allclose(one.double(), other.double(), rtol=1e-6, atol=1e-9, equal_nan=True)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= 1e-6 * abs(one) or (one != one and other != other)
    plain = isinstance(one, bool | int | str | bytes)  # no other object needs to know when it equals another
    return type(one) is type(other) and (not plain or bool(one == other))


def _shown(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"
