"""Random numbers that depend on names and counts alone, for code that draws from the process's own generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch

from byzflow.operators import seeded

_BORROWED = RLock()  # threads would draw from each other's


def seed_of(seed: int, name: str, count: int) -> int:
    """A seed of its own for each (seed, name, count), below 2^63."""
    return seeded(seed, name, count).initial_seed()


@contextmanager
def random_numbers(seed: int) -> Iterator[None]:
    """Global random numbers of torch, numpy and Python that depend on `seed` alone; as before afterwards.

    One thread at a time has them; processes that a DataLoader starts are seeded by what it draws here.
    """
    with _BORROWED, torch.random.fork_rng():
        kept = np.random.get_state(), random.getstate()
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(kept[0])
            random.setstate(kept[1])
