"""What a model's arrays look like, and a hash by which two machines see that they mean the same model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from byzflow.errors import ModelError

Kind = Literal["parameter", "buffer", "integer"]
ORDER: tuple[Kind, ...] = ("parameter", "buffer", "integer")


class Array(NamedTuple):
    """One array of a model: a floating parameter, a floating buffer, or a buffer of integers or truth values."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Schema:
    """All arrays of a model: parameters, floating buffers, integer buffers, each in the model's own order."""

    arrays: tuple[Array, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Schema:
        """The arrays of this module; a shared one once, under its first name; buffers that no state dict has, too.

        Raises ModelError for complex numbers, sparse arrays, parameters of integers, and lazy ones without a shape.
        """
        found = [_array(name, each, "parameter") for name, each in module.named_parameters()]
        found += [_array(name, each, "buffer") for name, each in module.named_buffers()]
        return cls(tuple(sorted(found, key=lambda array: ORDER.index(array.kind))))

    def of_kind(self, kind: Kind) -> tuple[Array, ...]:
        """The arrays of one kind, in order."""
        return tuple(array for array in self.arrays if array.kind == kind)

    def as_dict(self) -> dict[str, list[dict[str, object]]]:
        """Plain data: a list of name, shape and dtype for each kind."""
        return {
            kind: [{"name": a.name, "shape": [*a.shape], "dtype": _dtype(a)} for a in self.of_kind(kind)]
            for kind in ORDER
        }

    def hash(self) -> str:
        """SHA-256, 64 hex digits: equal for equal names, kinds, shapes and dtypes in equal order, whatever the values.

        Two nodes compare it before any vector is sent.
        """
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def schema_hash(module: nn.Module) -> str:
    """The hash of a module's schema."""
    return Schema.of(module).hash()


def _dtype(array: Array) -> str:
    return str(array.dtype).removeprefix("torch.")


def _array(name: str, each: torch.Tensor, kind: Kind) -> Array:
    if nn.parameter.is_lazy(each):
        raise ModelError(f"{kind} {name} is lazy and has no shape yet: run the model on one batch first")
    if each.is_complex() or each.layout != torch.strided or (kind == "parameter" and not each.is_floating_point()):
        raise ModelError(f"{kind} {name} is {each.dtype} in {each.layout}: only dense real arrays are handled")
    floating = each.is_floating_point()
    return Array(name, kind if floating else "integer", tuple(each.shape), each.dtype)
