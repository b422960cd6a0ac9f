"""One batch after the other, for ever, in an order that a seed and a position tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol

import torch
from torch import Tensor

from byzflow.errors import DataError
from byzflow.federation.randomness import random_numbers, seed_of
from byzflow.operators import seeded


class Batches(Protocol):
    """What a learner takes its batches from. `epoch` and `position` (batches given of it) tell all there is to tell."""

    epoch: int
    position: int

    @property
    def samples(self) -> int | None:
        """How many samples there are; None where nobody knows."""
        ...

    def next(self) -> Any:
        """The next batch; past the end of the data another epoch begins."""
        ...

    def seek(self, epoch: int, position: int) -> None:
        """Go on as one does who gave `position` batches of this epoch."""
        ...


class TensorBatches:
    """Batches (x, y) of two tensors, (n, ...) and (n, ...), shuffled anew in each epoch by (seed, epoch).

    Batches have `size` samples, or n if there are fewer; what is left over at the end of an epoch is left out, other
    samples each time. Raises DataError for no samples, for x and y of different lengths, and for a size below 1.
    """

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int) -> None:
        if len(x) != len(y) or not len(x):
            raise DataError(f"a node needs as many samples as labels, and one at least: got {len(x)} and {len(y)}")
        if size < 1:
            raise DataError(f"batch_size must be an int >= 1, got {size}")
        self.x, self.y, self.seed = x, y, seed
        self.size = min(size, len(x))
        self.seek(0, 0)

    @property
    def samples(self) -> int:
        return len(self.x)

    def seek(self, epoch: int, position: int) -> None:
        _check(epoch, position)
        if position > len(self.x) // self.size:
            raise DataError(f"an epoch has {len(self.x) // self.size} batches, not {position}: is it other data?")
        self.epoch, self.position = epoch, position
        self._order = torch.randperm(len(self.x), generator=seeded(self.seed, "epoch", epoch))

    def next(self) -> tuple[Tensor, Tensor]:
        if self.position == len(self.x) // self.size:
            self.seek(self.epoch + 1, 0)
        start = self.position * self.size
        self.position += 1
        chosen = self._order[start : start + self.size]
        return self.x[chosen], self.y[chosen]


class LoaderBatches:
    """The batches of a DataLoader, or of anything that can be iterated again and again.

    While it is asked for a batch, global random numbers depend on (seed, epoch, position) alone, so a loader that
    shuffles by them does the same each time, and so does a random transform in this process. A generator of the
    loader's own is seeded by (seed, epoch). To go on in mid-epoch, the batches before are drawn and dropped.
    """

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.loader, self.seed = loader, seed
        self._source: Iterator[Any] | None = None
        self.epoch = self.position = 0

    @property
    def samples(self) -> int | None:
        data = getattr(self.loader, "dataset", None)
        return len(data) if isinstance(data, Sized) else None

    def seek(self, epoch: int, position: int) -> None:
        _check(epoch, position)
        self.epoch, self.position, self._source = epoch, 0, None
        while self.position < position:
            try:
                self._draw()
            except StopIteration:
                raise DataError(
                    f"epoch {epoch} has {self.position} batches, not {position}: is it other data?"
                ) from None

    def next(self) -> Any:
        try:
            return self._draw()
        except StopIteration:
            if not self.position:
                raise DataError(
                    f"the loader gave no batch in epoch {self.epoch}: it must begin anew each time"
                ) from None
            self.epoch, self.position, self._source = self.epoch + 1, 0, None
            return self.next()

    def _draw(self) -> Any:
        with random_numbers(seed_of(self.seed, f"data {self.epoch}", self.position)):
            if self._source is None:
                self._seed_own()
                self._source = iter(self.loader)
            batch = next(self._source)
        self.position += 1
        return batch

    def _seed_own(self) -> None:
        """A loader with a generator draws from where the last epoch left it, which no checkpoint knows."""
        for owner in (self.loader, getattr(self.loader, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed_of(self.seed, "loader", self.epoch))


def batches_of(data: Any, size: int, seed: int) -> Batches:
    """Batches of a pair (x, y) of tensors, or of a loader. DataError for anything else."""
    match data:
        case (Tensor() as x, Tensor() as y):
            return TensorBatches(x, y, size, seed)
        case Tensor() | Mapping() | str() | tuple():
            pass
        case Iterable():
            return LoaderBatches(data, seed)
    raise DataError(f"data must be two tensors (x, y) or a DataLoader, got {type(data).__name__}")


def _check(epoch: int, position: int) -> None:
    if epoch < 0 or position < 0:
        raise DataError(f"epoch and position must be ints >= 0, got {epoch} and {position}")
