"""Nested mappings of tensors and plain values as one file, whole or not at all.

A safetensors file: tensors under numbers, and the mapping itself as JSON in the header, with a digest of everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from byzflow.errors import CheckpointError

Value: TypeAlias = "Tensor | np.ndarray[Any, Any] | int | float | str | bool | Mapping[str, Value]"
FORMAT = "byzflow checkpoint 1"
DEEPEST = 32  # mappings within mappings
TENSOR, ARRAY = "$tensor", "$array"


def save(path: str | Path, state: Mapping[str, Value]) -> None:
    """Write a mapping; the file that was there before is kept beside it, see `previous`.

    Whatever happens meanwhile, one whole file remains under one of the two names: the new one is written under a third
    name, is on the disk before it is renamed, and the one before is let go only when the new one is in its place.
    Raises CheckpointError for a value of another type, or if the file cannot be written.
    """
    from safetensors.torch import save_file

    path = Path(path)
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_packed(state, tensors, (), set()))
    meta = {"format": FORMAT, "tree": tree, "sha256": digest(tree, tensors)}
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, new, meta)
            with new.open("rb") as handle:
                os.fsync(handle.fileno())
            before = _second_name(path)
            new.replace(path)
            if before is not None:
                before.replace(previous(path))
        finally:
            new.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except Exception as error:
        raise CheckpointError(f"no checkpoint was written to {path}: {error}; the one before it still counts") from None


def load(path: str | Path) -> dict[str, Any]:
    """The mapping that `save` wrote; the one before it, with a warning, if that file is torn or gone.

    Raises CheckpointError if neither is whole, which says of each what is wrong with it.
    """
    path = Path(path)
    try:
        return read(path)
    except CheckpointError as fault:
        try:
            state = read(previous(path))
        except CheckpointError as second:
            raise CheckpointError(f"{fault}; nor is there one before it: {second}") from None
        warnings.warn(f"{fault}; going on from the one before it, {previous(path).name}", stacklevel=2)
        return state


def read(path: Path) -> dict[str, Any]:
    """The mapping of this very file. CheckpointError if it is missing, torn, changed or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no checkpoint: {error}") from None
    if meta.get("format") != FORMAT or "tree" not in meta:
        raise CheckpointError(f"{path} is no checkpoint of byzflow: its format is {meta.get('format')!r}")
    if digest(meta["tree"], tensors) != meta.get("sha256"):
        raise CheckpointError(f"{path} was changed or is torn: its digest is not the one that it was written with")
    state: dict[str, Any] = _unpacked(json.loads(meta["tree"]), tensors)
    return state


def exists(path: str | Path) -> bool:
    """If there is a checkpoint, or one before it."""
    return Path(path).exists() or previous(Path(path)).exists()


def previous(path: Path) -> Path:
    """Where the checkpoint before this one is."""
    return path.with_name(f"{path.name}.previous")


def digest(tree: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, 64 hex digits, of the plain values and of every tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        each = tensors[name]
        total.update(f"{name}\0{each.dtype}\0{tuple(each.shape)}\0".encode())
        total.update(each.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _packed(value: Any, tensors: dict[str, Tensor], where: tuple[str, ...], above: set[int]) -> Any:
    """JSON of a value, its tensors put aside."""
    match value:
        case Mapping():
            if id(value) in above or len(where) > DEEPEST:
                raise CheckpointError(f"{'/'.join(where[:4])}...: mappings within mappings, at most {DEEPEST} deep")
            if wrong := [key for key in value if not isinstance(key, str) or key in (TENSOR, ARRAY)]:
                raise CheckpointError(f"{'/'.join(where) or 'the state'}: a key must be a str, got {wrong[0]!r}")
            inner = above | {id(value)}
            return {key: _packed(each, tensors, (*where, key), inner) for key, each in value.items()}
        case bool() | int() | float() | str():
            return value
        case Tensor() | np.ndarray():
            name = str(len(tensors))
            kind = TENSOR if isinstance(value, Tensor) else ARRAY
            try:
                tensors[name] = torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
            except TypeError as error:
                raise CheckpointError(f"{'/'.join(where)}: {error}") from None
            return {kind: name}
    raise CheckpointError(
        f"{'/'.join(where)}: a checkpoint holds tensors, arrays, numbers, strings and mappings of them, "
        f"got {type(value).__name__}"
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    match value:
        case {"$tensor": str(name)}:
            return tensors[name]
        case {"$array": str(name)}:
            return tensors[name].numpy()
        case dict():
            return {key: _unpacked(each, tensors) for key, each in value.items()}
    return value


def _second_name(path: Path) -> Path | None:
    """Another name of the file that is there, so that it outlives being replaced; None if there is none."""
    name = path.with_name(f".{path.name}.before")
    name.unlink(missing_ok=True)
    try:
        name.hardlink_to(path)
    except FileNotFoundError:
        return None
    except OSError:  # a file system without links
        shutil.copyfile(path, name)
    return name


def _sync_directory(folder: Path) -> None:
    """That the rename itself outlives a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
