"""What optimisers remember, as an ArrayRecord: moments and step counts, which a client keeps between rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor
from torch.optim import Optimizer

from byzflow.errors import SpecError


def save(optimizers: Sequence[Optimizer]) -> ArrayRecord:
    """Tensors and numbers of each parameter, named optimiser/parameter/kind/name. SpecError for anything else."""
    arrays: dict[str, Tensor] = {}
    for k, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if not isinstance(value, Tensor | bool | int | float):
                    raise SpecError(
                        f"{type(optimizer).__name__} remembers {name}, a {type(value).__name__}: keep_optimizer can "
                        "carry tensors and numbers only, leave it out"
                    )
                kind = "tensor" if isinstance(value, Tensor) else "number"
                arrays[f"{k}/{parameter}/{kind}/{name}"] = torch.as_tensor(value).detach().cpu()
    return ArrayRecord(arrays)


def load(record: ArrayRecord, optimizers: Sequence[Optimizer]) -> None:
    """Put back what `save` took; learning rates and other settings stay the new ones."""
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for key, value in record.to_torch_state_dict().items():
        k, parameter, kind, name = key.split("/", 3)
        state = states[int(k)].setdefault(int(parameter), {})
        state[name] = value if kind == "tensor" else value.item()
    for optimizer, remembered in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": remembered})
