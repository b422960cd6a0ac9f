"""What a node needs to go on after a crash, in one file that is either whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byzflow.errors import FederationError

Value = Tensor | int | str


def save(path: str | Path, state: Mapping[str, Value]) -> None:
    """Write tensors, ints and strings by name, as safetensors with the rest and a digest of all in its metadata.

    To a temporary file first, which is synced to the disk and renamed, so that a crash leaves the last good one.
    Raises FederationError without safetensors, or if the file cannot be written.
    """
    write = _safetensors().save
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    plain = json.dumps({name: value for name, value in state.items() if not isinstance(value, Tensor)}, sort_keys=True)
    data = write(tensors, metadata={"plain": plain, "sha256": _digest(tensors, plain)})
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FederationError(f"the checkpoint {target} cannot be written: {error.strerror or error}") from None


def load(path: str | Path) -> dict[str, Value]:
    """What `save` wrote. Raises FederationError for a file that is not there, torn, or changed since."""
    read = _safetensors().load
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FederationError(f"no checkpoint {path}: {error.strerror or error}") from None
    try:
        tensors: dict[str, Tensor] = read(data)
        size = int.from_bytes(data[:8], "little")
        told = json.loads(data[8 : 8 + size])["__metadata__"]
        plain = json.loads(told["plain"])
    except Exception as error:  # whatever a torn file makes the readers raise
        raise FederationError(f"{path} is no whole checkpoint ({type(error).__name__}): use an earlier one") from None
    if told.get("sha256") != _digest(tensors, told["plain"]):
        raise FederationError(f"{path} is not as it was written, its digest differs: use an earlier one")
    return {**tensors, **plain}


def _digest(tensors: Mapping[str, Tensor], plain: str) -> str:
    total = hashlib.sha256(plain.encode())
    for name in sorted(tensors):
        each = tensors[name]
        total.update(f"\0{name}\0{each.dtype}\0{tuple(each.shape)}\0".encode())
        total.update(each.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise FederationError("checkpoints need the package safetensors: pip install safetensors") from None
    return safetensors.torch
