"""One worker's forward and backward, beside the model's own gradients; and a loss whose gradients are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Gradients = dict[str, Tensor | None]


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that want a gradient, by name; a shared one once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def gradients(loss: Tensor, parameters: Mapping[str, nn.Parameter], scaler: Any = None) -> Gradients:
    """The gradient of the loss by each parameter, in float32 at least; None where it does not depend on it.

    `grad` of the parameters and the hooks that wait there, such as DDP's, see nothing of it, and the graph is freed.
    A scaler keeps float16 from underflow on the way.
    """
    with torch.autocast(loss.device.type, enabled=False):
        start = loss if scaler is None else scaler.scale(loss)
        found = torch.autograd.grad(start, list(parameters.values()), allow_unused=True)
        shrink = 1.0 if scaler is None else 1.0 / scaler.get_scale()
        return {
            name: None if each is None else each.to_dense().to(row_dtype(each)).mul(shrink)
            for name, each in zip(parameters, found, strict=True)
        }


def row_dtype(tensor: Tensor) -> torch.dtype:
    """What gradients of such a parameter are remembered and compared in: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def finite(found: Gradients) -> bool:
    """Whether no gradient holds NaN or Inf."""
    tests = [torch.isfinite(each).all() for each in found.values() if each is not None]
    return not tests or bool(torch.stack(tests).all())


def loss_with(value: Tensor, given: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """A loss of this value whose gradients by the parameters are those given, times whatever it is multiplied by."""
    apply: Callable[..., Tensor] = _Given.apply
    return apply(value, given, *parameters)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, given: Sequence[Tensor], *parameters: nn.Parameter) -> Tensor:
        ctx.given, ctx.dtypes = given, [parameter.dtype for parameter in parameters]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        scaled = ((factor * each).to(dtype) for each, dtype in zip(ctx.given, ctx.dtypes, strict=True))
        return (None, None, *scaled)


@contextmanager
def unnoticed(module: Any) -> Iterator[None]:
    """What a forward does to the module's buffers, BatchNorm's statistics among them, and what it logs is forgotten."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    hidden = vars(module).get("log")
    vars(module)["log"] = _say_nothing
    try:
        yield
    finally:
        del vars(module)["log"]
        if hidden is not None:
            vars(module)["log"] = hidden
        with torch.no_grad():
            for buffer, old in before:
                buffer.copy_(old)


def _say_nothing(*args: Any, **kwargs: Any) -> None:
    """In the place of `LightningModule.log`."""


Step = Callable[..., Any]
"""A `training_step`."""
