"""The loss of one batch, from a module with a loss function or from a LightningModule, known by what it can do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from byzflow.errors import ModelError, SpecError

Loss = Callable[[Tensor, Tensor], Tensor]
"""(scores, y) -> the mean loss of a batch, a tensor of one number."""


def is_lightning(module: nn.Module) -> bool:
    """Whether it brings its own training_step and configure_optimizers."""
    return all(callable(getattr(module, name, None)) for name in ("training_step", "configure_optimizers"))


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a `training_step` returned; None if it skipped. SpecError for a mapping without one."""
    if isinstance(output, Mapping) and "loss" not in output:
        raise SpecError(f"training_step returned a mapping without 'loss': it has {', '.join(map(str, output))}")
    loss: Tensor | None = output["loss"] if isinstance(output, Mapping) else output
    return loss


def batch_loss(module: nn.Module, loss: Loss | None, batch: Any, index: int) -> tuple[Tensor | None, dict[str, float]]:
    """The loss of one batch with its graph, and the numbers that the module logged on the way.

    A LightningModule is asked for its `training_step` unless a `loss` is given; else a batch is (x, y), and the loss
    cross entropy by default.
    """
    if is_lightning(module) and loss is None:
        step: Callable[..., Any] = module.training_step  # type: ignore[assignment]
        with _logged(module) as numbers:
            takes_index = "batch_idx" in inspect.signature(step).parameters
            return loss_of(step(batch, index) if takes_index else step(batch)), numbers
    x, y = pair(batch)
    found = (loss or functional.cross_entropy)(module(x), y)
    if found.numel() != 1:
        raise ModelError(f"the loss of a batch must be one number, got {tuple(found.shape)}: take the mean")
    return found, {}


def pair(batch: Any) -> tuple[Tensor, Tensor]:
    """The x and y of a batch. ModelError if it is no pair of tensors."""
    match batch:
        case [Tensor() as x, Tensor() as y]:
            return x, y
    raise ModelError(f"a batch must be (x, y), got {type(batch).__name__}: a LightningModule takes any batch")


def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """The one optimiser of a LightningModule's `configure_optimizers`. ModelError for several, and for schedules."""
    given: Any = module.configure_optimizers()  # type: ignore[operator]
    match given:
        case {"optimizer": made, **rest} if not any(rest.values()):
            given = made
        case [made] | [[made], []]:
            given = made
    if not isinstance(given, torch.optim.Optimizer):
        raise ModelError(
            f"{type(module).__name__}.configure_optimizers must return one optimizer and no schedule here, got "
            f"{type(given).__name__}: pass Learner(optimizer=...), parameters -> optimizer"
        )
    return given


def draws_random_numbers(module: nn.Module) -> bool:
    """Whether a forward may draw: torch's own layers are known, of a module of anybody else it is assumed."""
    return any(
        not type(each).__module__.startswith("torch.nn.")
        or isinstance(each, nn.modules.dropout._DropoutNd | nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)
        or bool(getattr(each, "dropout", 0.0))
        for each in module.modules()
    )


@contextmanager
def _logged(module: nn.Module) -> Iterator[dict[str, float]]:
    """What a LightningModule logs, which without a Trainer it could not."""
    numbers: dict[str, float] = {}

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            numbers[name] = float(value.detach()) if isinstance(value, Tensor) else float(value)

    def log_dict(values: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        for name, value in values.items():
            log(name, value)

    hidden: dict[str, Any] = {name: vars(module)[name] for name in ("log", "log_dict") if name in vars(module)}
    vars(module).update(log=log, log_dict=log_dict)
    try:
        yield numbers
    finally:
        del vars(module)["log"], vars(module)["log_dict"]
        vars(module).update(hidden)
