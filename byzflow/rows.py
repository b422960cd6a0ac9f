"""The n rows, wherever they are: n sources of named leaves, read tile by tile and never stacked.

A row is a tensor, a numpy array, or a mapping name -> tensor or array (a state dict). `Rows.of` accepts a
list of n rows, or one (n, ...) tensor or array. `tile(span)` gathers some coordinates of every row into one small
tensor. `Mixed` is rows that are combinations of others, `Ranked` a row that a column rule makes of others, `Shifted`
rows less one vector, such as models less the one they started from. All are computed a tile at a time: the rows
between two stages of a chain never exist as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byzflow.errors import RowsError
from byzflow.layout import Layout, Leaf, Span

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TILE_ELEMENTS = 1 << 17  # of float64: about one second-level cache
SATURATE = 1e140  # a float64 coordinate beyond this counts as this in combinations, so that no square overflows


class Arranged:
    """What rows and combinations of rows share: a layout, which further vectors can be brought into."""

    layout: Layout

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its tiles."""
        return self.layout.dtype

    def vector(self, name: str, value: Any) -> Rows:
        """One more vector of the same layout, such as a centre: Rows with n = 1."""
        return self.vectors(name, [value])

    def vectors(self, name: str, values: Sequence[Any]) -> Rows:
        """More vectors of the same layout, such as each row's momentum."""
        try:
            sources = tuple(_flat(i, value, self.layout, strict=False) for i, value in enumerate(values))
        except RowsError as error:
            raise RowsError(f"{name} does not fit the rows: {error}") from None
        return Rows(sources, self.layout)


@dataclass(frozen=True)
class Rows(Arranged):
    """n rows; `sources[i][k]` is leaf k of row i as a flat tensor that shares its memory."""

    sources: tuple[tuple[Tensor, ...], ...]
    layout: Layout

    @classmethod
    def of(cls, rows: Any) -> Rows:
        """Rows from a list of n rows or one (n, ...) tensor or array. Raises RowsError, naming the row."""
        if isinstance(rows, Rows):
            return rows
        stacked = isinstance(rows, Tensor | np.ndarray)
        if stacked and rows.ndim < 2:
            raise RowsError(f"rows must be (n, d) or a list of n vectors, got shape {tuple(rows.shape)}")
        if isinstance(rows, Mapping | str | bytes) or not (stacked or isinstance(rows, Sequence)):
            raise RowsError(f"rows must be a list of n vectors or an (n, d) tensor, got {type(rows).__name__}")
        if len(rows) == 0:
            raise RowsError("no rows: the list is empty")
        if stacked:
            whole = _tensor(0, None, rows)
            leaf = Leaf(None, tuple(whole.shape[1:]), whole.dtype, whole[0].numel())
            layout = Layout((leaf,), whole.device, isinstance(rows, np.ndarray))
            return cls(tuple((row.reshape(-1),) for row in whole), layout)
        first = _leaves(0, rows[0])
        if not first:
            raise RowsError("row 0 is an empty mapping: it has nothing to aggregate")
        leaves = tuple(Leaf(name, tuple(value.shape), value.dtype, value.numel()) for name, value in first)
        layout = Layout(leaves, first[0][1].device, _is_array(rows[0]), stacked=False)
        return cls(tuple(_flat(i, row, layout) for i, row in enumerate(rows)), layout)

    def shard(self, total: Callable[[Tensor], Tensor]) -> Rows:
        """These rows as one shard of longer ones, whose other coordinates are elsewhere.

        `total` takes a float64 vector on the CPU and returns its sum over all shards, the same to the last bit on
        each. It is called equally often on all of them, so an operator runs on every shard at once; each gets its
        part of the result, and the same weights, rejections and errors.
        """
        return Rows(self.sources, replace(self.layout, total=total))

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.sources)

    @property
    def width(self) -> int:
        """Rows that a tile reads."""
        return self.n

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at these indices, sharing memory."""
        return Rows(tuple(self.sources[i] for i in indices), self.layout)

    def tile(self, span: Span) -> Tensor:
        """These coordinates of every row: (n, stop - start) in the layout's dtype, a copy."""
        k, a, b = span
        out = torch.empty((self.n, b - a), dtype=self.layout.dtype, device=self.layout.device)
        for row, source in zip(out.unbind(), self.sources, strict=True):
            row.copy_(source[k][a:b])
        return out

    def pick(self, coordinates: Tensor) -> Tensor:
        """Some coordinates of every row, numbered through the leaves: (n, k) in the layout's dtype."""
        coordinates = coordinates.to(self.layout.device)
        out = torch.empty((self.n, coordinates.numel()), dtype=self.layout.dtype, device=self.layout.device)
        first = 0
        for k, leaf in enumerate(self.layout.leaves):
            here = ((coordinates >= first) & (coordinates < first + leaf.numel)).nonzero().flatten()
            if here.numel():
                inside = coordinates[here] - first
                for i, source in enumerate(self.sources):
                    out[i, here] = source[k][inside].to(out.dtype)
            first += leaf.numel
        return out

    def cut(self, span: Span) -> Rows:
        """The rows as if these coordinates were all of them, sharing memory."""
        k, a, b = span
        return Rows(tuple((source[k][a:b],) for source in self.sources), self.layout.only(span))


class Mixed(Arranged):
    """m rows that are combinations of other rows: tile = weights @ tiles of the parts. Weight 0 is never read."""

    def __init__(self, parts: Sequence[AnyRows], weights: Tensor) -> None:
        """`weights` (m, total rows of the parts) float64, on the CPU."""
        self.layout = parts[0].layout
        parts, weights = _where_they_lie(parts, weights)
        self.n = weights.shape[0]
        live = (weights != 0).any(0)
        self.parts: list[AnyRows] = []
        start = 0
        for part in parts:
            used = live[start : start + part.n].nonzero().flatten().tolist()
            if used:
                self.parts.append(part.take(used))
            start += part.n
        self.width: int = sum(part.width for part in self.parts)
        self.weights = weights[:, live].to(self.layout.device)

    @property
    def dtype(self) -> torch.dtype:
        """float64, whatever the rows have."""
        return torch.float64

    def tile(self, span: Span) -> Tensor:
        """These coordinates of every row: (m, stop - start) float64."""
        if not self.parts:
            return self.weights.new_zeros(self.n, span.stop - span.start)
        return combined(self.weights, torch.cat([saturated(part.tile(span)) for part in self.parts]))

    def pick(self, coordinates: Tensor) -> Tensor:
        """Some coordinates of every row, numbered through the leaves: (m, k) float64."""
        if not self.parts:
            return self.weights.new_zeros(self.n, coordinates.numel())
        return combined(self.weights, torch.cat([saturated(part.pick(coordinates)) for part in self.parts]))

    def take(self, indices: Sequence[int]) -> Mixed:
        """The rows at these indices."""
        return self._like(self.layout, self.parts, self.weights[list(indices)])

    def cut(self, span: Span) -> Mixed:
        """The rows as if these coordinates were all of them."""
        return self._like(self.layout.only(span), [part.cut(span) for part in self.parts], self.weights)

    def _like(self, layout: Layout, parts: Sequence[AnyRows], weights: Tensor) -> Mixed:
        other = object.__new__(Mixed)
        other.layout, other.n, other.width = layout, len(weights), self.width
        other.parts, other.weights = list(parts), weights
        return other


class Shifted(Arranged):
    """n rows less one vector, the origin that they are measured from: models less the one they were trained from.

    No difference exists beyond a tile, and combinations and inner products are found without any, from the rows where
    they lie. Differences of float32 are float32, of halves float32 too.
    """

    def __init__(self, rows: Any, origin: Any) -> None:
        """`rows` as `Rows.of` takes them, and one more like them. Raises RowsError where they do not fit."""
        self.rows = Rows.of(rows)
        self.origin = origin if isinstance(origin, Rows) else self.rows.vector("origin", origin)
        self.layout = self.rows.layout

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.rows.n

    @property
    def width(self) -> int:
        """Rows that a tile reads."""
        return self.rows.n + 1

    def tile(self, span: Span) -> Tensor:
        """These coordinates of every row: (n, stop - start) in the layout's dtype, a copy."""
        return self.rows.tile(span).sub_(self.origin.tile(span))

    def pick(self, coordinates: Tensor) -> Tensor:
        """Some coordinates of every row, numbered through the leaves: (n, k) in the layout's dtype."""
        return self.rows.pick(coordinates).sub_(self.origin.pick(coordinates))

    def take(self, indices: Sequence[int]) -> Shifted:
        """The rows at these indices, sharing memory."""
        return Shifted(self.rows.take(indices), self.origin)

    def cut(self, span: Span) -> Shifted:
        """The rows as if these coordinates were all of them, sharing memory."""
        return Shifted(self.rows.cut(span), self.origin.cut(span))


def _where_they_lie(parts: Sequence[AnyRows], weights: Tensor) -> tuple[list[AnyRows], Tensor]:
    """The same combinations, of shifted rows as combinations of the rows and of their origin."""
    lie: list[AnyRows] = []
    columns: list[Tensor] = []
    start = 0
    for part in parts:
        own = weights[:, start : start + part.n]
        start += part.n
        if isinstance(part, Shifted):
            lie += [part.rows, part.origin]
            columns += [own, -own.sum(1, keepdim=True)]
        else:
            lie.append(part)
            columns.append(own)
    return lie, torch.cat(columns, dim=1)


def combined(weights: Tensor, tile: Tensor) -> Tensor:
    """weights @ tile, in which a row that is kept although it is not finite touches those alone that have a share."""
    out = weights @ tile
    if bool(torch.isfinite(out.sum())):
        return out
    bad = ~torch.isfinite(tile)
    out = weights @ tile.masked_fill(bad, 0)
    return out.masked_fill((weights != 0).to(out.dtype) @ bad.to(out.dtype) > 0, torch.nan)


class Streamed(Arranged):
    """n rows that are read a tile at a time from elsewhere: larger than memory, or on other machines.

    `read(start, stop)` gives coordinates start to stop of all rows, an (n, stop - start) array or tensor; a pass
    calls it over all d coordinates, in order. The result is one tensor of d coordinates.
    """

    def __init__(self, read: Callable[[int, int], Any], n: int, d: int, dtype: torch.dtype = torch.float32) -> None:
        if n < 1 or d < 0 or dtype not in FLOATS:
            raise RowsError(f"streamed rows need n >= 1, d >= 0 and a floating dtype, got n={n}, d={d}, {dtype}")
        self.layout = Layout((Leaf(None, (d,), dtype, d),), torch.device("cpu"), stacked=False)
        self.n = n
        self.width: int = n
        self._read, self._indices = read, list(range(n))

    def tile(self, span: Span) -> Tensor:
        """These coordinates of every row: (n, stop - start) in the layout's dtype."""
        tile = torch.as_tensor(self._read(span.start, span.stop))
        wanted = (max(self._indices, default=-1) + 1, span.stop - span.start)
        if tile.ndim != 2 or tile.shape[0] < wanted[0] or tile.shape[1] != wanted[1] or tile.dtype not in FLOATS:
            raise RowsError(f"read({span.start}, {span.stop}) gave {tile.dtype} of shape {tuple(tile.shape)}")
        return tile[self._indices].to(self.layout.dtype)

    def pick(self, coordinates: Tensor) -> Tensor:
        """Some coordinates of every row: (n, k) in the layout's dtype. Each tile that holds some is read once."""
        out = torch.empty((self.n, coordinates.numel()), dtype=self.layout.dtype)
        tiles = coordinates // max(64, TILE_ELEMENTS // max(1, self.width))
        for tile in torch.unique(tiles):
            here = (tiles == tile).nonzero().flatten()
            wanted = coordinates[here]
            first = int(wanted.min())
            out[:, here] = self.tile(Span(0, first, int(wanted.max()) + 1))[:, wanted - first]
        return out

    def take(self, indices: Sequence[int]) -> Streamed:
        """The rows at these indices."""
        other = Streamed(self._read, len(indices), self.layout.d, self.layout.leaves[0].dtype)
        other._indices, other.width = [self._indices[i] for i in indices], self.width
        return other

    def cut(self, span: Span) -> Streamed:
        """The rows as if these coordinates were all of them."""
        other = self.take(range(self.n))
        other.layout = self.layout.only(span)
        other._read = lambda start, stop: self._read(span.start + start, span.start + stop)
        return other


class Ranked(Arranged):
    """One row that a column rule makes of other rows, such as their median; n = 1."""

    n = width = 1

    def __init__(self, rows: AnyRows, rank: Callable[[AnyRows], Tensor]) -> None:
        """`rank` gives the d results for rows of d coordinates, any d, in one leaf."""
        self.layout, self._rows, self._rank = rows.layout, rows, rank

    def tile(self, span: Span) -> Tensor:
        """These coordinates: (1, stop - start) in the layout's dtype."""
        return self._rank(self._rows.cut(span)).to(self.dtype).unsqueeze(0)

    def pick(self, coordinates: Tensor) -> Tensor:
        """Some coordinates, numbered through the leaves: (1, k) in the layout's dtype."""
        return self._rank(Rows.of(self._rows.pick(coordinates))).to(self.dtype).unsqueeze(0)

    def take(self, indices: Sequence[int]) -> Ranked:
        """Itself: there is one row."""
        return self

    def cut(self, span: Span) -> Ranked:
        """The row as if these coordinates were all of it."""
        return Ranked(self._rows.cut(span), self._rank)


AnyRows = Rows | Mixed | Shifted | Streamed | Ranked


def saturated(tile: Tensor) -> Tensor:
    """A tile in float64, so that products of its coordinates are finite."""
    return tile.clamp_(-SATURATE, SATURATE) if tile.dtype == torch.float64 else tile.double()


class _Shared:
    """Read-only memory as torch wants it, without a copy: byzflow never writes to a row."""

    __slots__ = ("base",)

    def __init__(self, base: np.ndarray[Any, Any]) -> None:
        self.base = base

    @property
    def __array_interface__(self) -> dict[str, Any]:
        interface = self.base.__array_interface__
        return interface | {"data": (interface["data"][0], False)}


def _is_array(row: Any) -> bool:
    if isinstance(row, Mapping):
        row = next(iter(row.values()))
    return isinstance(row, np.ndarray | np.generic)


def _tensor(i: int, name: str | None, value: Any) -> Tensor:
    where = f"row {i}" if name is None else f"row {i}, key {name!r}"
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind != "f" or value.dtype.itemsize not in (2, 4, 8):
            raise RowsError(f"{where} is {value.dtype}: only floating-point rows can be aggregated")
        value = np.asarray(value)
        if not value.dtype.isnative or any(stride < 0 for stride in value.strides):
            value = value.astype(value.dtype.newbyteorder("="))  # torch takes neither
        return torch.from_numpy(value if value.flags.writeable else np.asarray(_Shared(value)))
    if not isinstance(value, Tensor):
        raise RowsError(f"{where} is {type(value).__name__}: a row is a tensor, an array or a mapping of them")
    if value.layout != torch.strided:
        raise RowsError(f"{where} is {value.layout}: only dense rows can be aggregated, call to_dense() first")
    if value.dtype not in FLOATS:
        raise RowsError(f"{where} is {value.dtype}: only floating-point rows can be aggregated")
    return value.detach()


def _leaves(i: int, row: Any) -> list[tuple[str | None, Tensor]]:
    if isinstance(row, Mapping):
        return [(name, _tensor(i, name, value)) for name, value in row.items()]
    return [(None, _tensor(i, None, row))]


def _flat(i: int, row: Any, layout: Layout, strict: bool = True) -> tuple[Tensor, ...]:
    """The leaves of a row as flat tensors, matched by key; if not strict, shape and dtype may differ."""
    first = layout.leaves[0]
    wanted = (first.shape, first.dtype, layout.device, torch.strided)
    if first.name is None and isinstance(row, Tensor) and (row.shape, row.dtype, row.device, row.layout) == wanted:
        return (row.detach().reshape(-1),)  # what most rows are, spared the questions below
    named = dict(_leaves(i, row))
    names = [leaf.name for leaf in layout.leaves]
    if set(named) != set(names):
        if None in named or None in names:
            raise RowsError(f"row {i} is not of the same kind as row 0: one is a mapping, the other is not")
        missing = sorted(str(k) for k in set(names) - set(named))
        extra = sorted(str(k) for k in set(named) - set(names))
        raise RowsError(f"row {i} has other keys than row 0: missing {missing}, extra {extra}")
    flat = []
    for leaf in layout.leaves:
        value = named[leaf.name]
        where = f"row {i}" if leaf.name is None else f"row {i}, key {leaf.name!r}"
        if value.numel() != leaf.numel or (strict and tuple(value.shape) != leaf.shape):
            raise RowsError(
                f"{where} has shape {tuple(value.shape)}, {'row 0 has' if strict else 'a row has'} {leaf.shape}"
            )
        if strict and value.dtype != leaf.dtype:
            raise RowsError(f"{where} is {value.dtype}, row 0 is {leaf.dtype}: convert them to one dtype")
        if value.device != layout.device:
            raise RowsError(f"{where} is on {value.device}, row 0 is on {layout.device}: move them to one device")
        flat.append(value.reshape(-1))
    return tuple(flat)
