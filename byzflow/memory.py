"""What a rule remembers from round to round, kept by node: who takes part changes, and rows have no names.

Written as one safetensors file, by way of a temporary file and a rename, so that a crash leaves the last whole one.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byzflow.engine.extras import PerRow
from byzflow.errors import ByzflowError

State = Mapping[str, Any]
SEPARATOR = "\x1f"  # between the parts of a tensor's name; array names may hold anything that prints


class ByNode(dict[Any, Any]):
    """A part of a state that holds one entry a node."""


def extras_for(state: State, nodes: Sequence[Hashable]) -> dict[str, Any]:
    """The extras of a call whose rows come from these nodes; a node that is new has None."""
    return {
        name: PerRow(value.get(node) for node in nodes) if isinstance(value, ByNode) else value
        for name, value in state.items()
    }


def by_node(state: State, nodes: Sequence[Hashable], before: State) -> dict[str, Any]:
    """The state that a call returned, its rows those of these nodes; other nodes keep what they had."""
    return {
        name: ByNode({**before.get(name, {}), **dict(zip(nodes, value, strict=True))})
        if isinstance(value, PerRow)
        else value
        for name, value in state.items()
    }


def save(file: str | Path, state: State) -> None:
    """Write a state; an existing file is replaced only by a whole one."""
    from safetensors.torch import save_file

    file = Path(file)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        parts = value.items() if isinstance(value, ByNode) else [("", value)]
        for node, part in parts:
            if part is not None:
                tensors.update(_flat((name, str(node)), part))
    new = file.with_name(f".{file.name}.{os.getpid()}")
    save_file(tensors, new)
    with new.open("rb") as handle:
        os.fsync(handle.fileno())
    new.replace(file)


def load(file: str | Path) -> dict[str, Any]:
    """The state that `save` wrote. Raises ByzflowError if the file is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ByzflowError(f"{file} is no saved state: {error}") from None
    state: dict[str, Any] = {}
    for key, tensor in tensors.items():
        parts = key.split(SEPARATOR)
        if len(parts) != 4:
            raise ByzflowError(f"{file} is no saved state: it holds {key!r}")
        name, node, kind, leaf = parts
        value: Any = tensor.numpy() if kind == "array" else tensor if kind == "tensor" else tensor.item()
        home: dict[Any, Any] = state.setdefault(name, ByNode()) if node else state
        place = int(node) if node else name
        if leaf:
            home.setdefault(place, {})[leaf] = value
        else:
            home[place] = value
    return state


def _flat(where: tuple[str, str], value: Any) -> dict[str, torch.Tensor]:
    """Tensors by name: state, node or nothing, kind, leaf or nothing."""
    leaves = value.items() if isinstance(value, Mapping) else [("", value)]
    flat = {}
    for leaf, part in leaves:
        kind = "array" if isinstance(part, np.ndarray) else "tensor" if isinstance(part, torch.Tensor) else "number"
        flat[SEPARATOR.join((*where, kind, leaf))] = torch.as_tensor(part).clone().contiguous()
    return flat
