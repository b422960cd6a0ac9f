"""A digest of a value's content, by which a result may be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def digest(value: Any) -> bytes | None:
    """SHA-256 of tensors, arrays, numbers, words, and mappings and sequences of them; None for anything else.

    Such as a tensor that wants gradients, which is more than its content, or that is sparse or on no device.
    """
    total = hashlib.sha256()
    try:
        for part in _parts(value):
            total.update(len(part).to_bytes(8, "big") + part)
    except (TypeError, RecursionError):
        return None
    return total.digest()


def _parts(value: Any) -> Iterator[bytes]:
    yield type(value).__qualname__.encode()
    if type(value) is torch.Tensor and value.layout == torch.strided and not (value.requires_grad or value.is_meta):
        whole = value.cpu().resolve_conj().resolve_neg().contiguous()
        yield f"{whole.dtype} {tuple(whole.shape)} {value.device}".encode()
        yield whole.flatten().view(torch.uint8).numpy().tobytes()
    elif type(value) is np.ndarray and not value.dtype.hasobject:
        yield f"{value.dtype.descr} {value.shape}".encode()
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
