"""Any object as bytes and buffers, between processes of one owner. Never for what comes from elsewhere."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import cloudpickle
import torch

from byzflow.actors.link import Frame, Unreadable
from byzflow.errors import one_line

OUTSIDE = 1 << 14  # bytes from which a buffer travels beside the pickle: a shared slot costs two messages more


def _parameter(*tensor: Any) -> torch.nn.Parameter:
    values = _tensor(*tensor)
    return torch.nn.Parameter(values.detach(), values.requires_grad)


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
            return _parameter if type(value) is torch.nn.Parameter else _tensor, rebuild
        return super().reducer_override(value)


def dumps(frame: Frame) -> tuple[bytes, list[memoryview]]:
    """The frame without its large buffers, and those. Raises TypeError for what cannot travel, such as a socket."""
    buffers: list[memoryview] = []

    def outside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUTSIDE:
            return True
        buffers.append(raw)
        return False

    what = pickle.dumps((frame.kind, frame.number))
    stream = io.BytesIO()
    stream.write(bytes([len(what)]) + what)
    try:
        _Pickler(stream, protocol=5, buffer_callback=outside).dump(frame.body)
    except (Exception, SystemExit) as error:  # an object's own __reduce__ may raise anything
        raise TypeError(f"this cannot travel to another process: {one_line(error)}") from None
    return stream.getvalue(), buffers


def loads(head: bytes | memoryview, buffers: Sequence[memoryview]) -> Frame:
    """The frame again; its tensors and arrays lie in `buffers`, where these are not copied.

    A value that cannot be made here is `Unreadable`, so that whoever waits for it hears of it.
    """
    begin = 1 + head[0]
    kind, number = pickle.loads(head[1:begin])
    try:
        return Frame(kind, number, pickle.loads(memoryview(head)[begin:], buffers=buffers))
    except (Exception, SystemExit) as error:  # making an object runs its own code, and may import a script
        return Frame(kind, number, Unreadable(one_line(error)))
