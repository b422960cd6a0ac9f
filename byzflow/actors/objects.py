"""Any object as bytes and buffers, between processes of one owner. Never for what comes from elsewhere."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import cloudpickle
import torch

OUTSIDE = 1 << 14  # bytes from which a buffer travels beside the pickle: a shared slot costs two messages more


def _tensor(buffer: Any, dtype: torch.dtype, shape: Sequence[int], requires_grad: bool) -> torch.Tensor:
    memory = memoryview(buffer)
    if memory.readonly:  # it came inside the pickle
        memory = memoryview(bytearray(memory))
    flat = torch.frombuffer(memory, dtype=dtype) if memory.nbytes else torch.empty(0, dtype=dtype)
    return flat.reshape(tuple(shape)).requires_grad_(requires_grad)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Tensors of the CPU go as buffers; cloudpickle takes care of functions and classes that have no import name."""

    def reducer_override(self, value: Any) -> Any:
        plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if plain and value.device.type == "cpu" and not value.is_quantized and not value.is_complex():
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            rebuild: tuple[Any, ...] = (pickle.PickleBuffer(flat), value.dtype, tuple(value.shape), value.requires_grad)
            return _tensor, rebuild
        return super().reducer_override(value)


def dumps(value: Any) -> tuple[bytes, list[memoryview]]:
    """The value without its large buffers, and those. Raises TypeError for what cannot travel, such as a socket."""
    buffers: list[memoryview] = []

    def outside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUTSIDE:
            return True
        buffers.append(raw)
        return False

    stream = io.BytesIO()
    try:
        _Pickler(stream, protocol=5, buffer_callback=outside).dump(value)
    except pickle.PicklingError as error:
        raise TypeError(f"this cannot travel to another process: {error}") from None
    return stream.getvalue(), buffers


def loads(head: bytes | memoryview, buffers: Sequence[memoryview]) -> Any:
    """The value again; its tensors and arrays lie in `buffers`, where these are not copied."""
    return pickle.loads(head, buffers=buffers)
