"""A digest of a value's content, by which a result may be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def digest(value: Any) -> bytes | None:
    """SHA-256 of tensors, arrays, numbers, words, and mappings and sequences of them; None for anything else."""
    total = hashlib.sha256()
    try:
        for part in _parts(value):
            total.update(len(part).to_bytes(8, "big") + part)
    except TypeError:
        return None
    return total.digest()


def _parts(value: Any) -> Iterator[bytes]:
    yield type(value).__qualname__.encode()
    if isinstance(value, torch.Tensor):
        whole = value.detach().cpu().contiguous()
        yield f"{whole.dtype} {tuple(whole.shape)} {value.device}".encode()
        yield whole.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype.str} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        yield str(len(value)).encode()
        for key, each in value.items():
            yield from _parts(key)
            yield from _parts(each)
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for each in value:
            yield from _parts(each)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield repr(value).encode()
    else:
        raise TypeError(type(value))
