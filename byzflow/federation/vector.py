"""A model as one flat vector: reading it copies nothing, and setting it is one copy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from byzflow.errors import ModelError, NonFiniteRows, SpecError
from byzflow.federation.schema import ORDER, Schema

Buffers = Literal["local", "mix"]
Integers = Literal["local", "max", "median"]


class ModelVector:
    """The parameters of a module as views of one contiguous vector of n numbers, in the module's own order.

        model = ModelVector(module)
        model.set(model.get() - 0.1 * gradient)

    Making one moves the parameters' storage; the module works on as before, optimisers and state dicts with it.

    Parameters
    ----------
    module : any module; all its floating parameters have one dtype and device. Frozen ones are part of the vector.
    buffers : what becomes of floating buffers such as BatchNorm's statistics: "local" leaves them to this node, "mix"
        makes them part of the vector, behind the parameters.
    integers : the same for counters: "local", or what `merge_integers` makes of many, "max" or "median".

    Raises
    ------
    ModelError : no parameter, or parameters (and mixed buffers) of several dtypes or devices.
    SpecError : an unknown policy.
    """

    def __init__(self, module: nn.Module, *, buffers: Buffers = "local", integers: Integers = "local") -> None:
        if buffers not in ("local", "mix"):
            raise SpecError(f"buffers must be 'local' or 'mix', got {buffers!r}")
        if integers not in ("local", "max", "median"):
            raise SpecError(f"integers must be 'local', 'max' or 'median', got {integers!r}")
        self.module, self.buffers, self.integers = module, buffers, integers
        self.schema = Schema.of(module)
        arrays = dict(module.named_parameters()) | dict(module.named_buffers())
        mixed = self.schema.of_kind("parameter") + (self.schema.of_kind("buffer") if buffers == "mix" else ())
        if not any(array.numel for array in self.schema.of_kind("parameter")):
            raise ModelError(f"{type(module).__name__} has no parameters: there is nothing to learn")
        for what, found in (
            ("dtypes", {array.dtype for array in mixed}),
            ("devices", {arrays[array.name].device for array in mixed}),
        ):
            if len(found) > 1:
                names = ", ".join(sorted(map(str, found)))
                raise ModelError(f"one vector needs one of {what}, the model has {names}: convert it with module.to()")
        self._flat = torch.cat([arrays[array.name].detach().flatten() for array in mixed])
        self._places: list[_Place] = []
        for array, part in zip(mixed, self._flat.split_with_sizes([array.numel for array in mixed]), strict=True):
            arrays[array.name].data = part.view(array.shape)
            owner, _, key = array.name.rpartition(".")
            self._places.append(_Place(array.name, module.get_submodule(owner), key, part.data_ptr()))
        learns = [arrays[array.name].requires_grad for array in mixed]
        sizes = torch.tensor([array.numel for array in mixed])
        self.trainable = torch.tensor(learns).repeat_interleave(sizes).to(self._flat.device)
        """(n,) bool: which coordinates training may move; not frozen parameters, nor buffers."""

    def __len__(self) -> int:
        """n, the numbers of one vector."""
        return self._flat.numel()

    def get(self) -> Tensor:
        """(n,): a view of the model itself, without a copy: clone what must outlive the next step."""
        self._check()
        return self._flat

    def set(self, vector: Tensor, *, finite: bool = False) -> None:
        """Make these n numbers the model, in its own dtype and on its device.

        Raises ModelError for another shape or for integers, and NonFiniteRows for NaN or Inf if `finite` is asked.
        """
        self._check()
        if vector.shape != self._flat.shape or not vector.is_floating_point():
            raise ModelError(
                f"the model is a vector of {len(self)} floating numbers, got {vector.dtype} of {tuple(vector.shape)}"
            )
        values = vector.detach().to(self._flat)  # first: a number of float64 can be Inf in float32
        if finite:
            check_finite(values)
        self._flat.copy_(values)

    def integer_buffers(self) -> dict[str, Tensor]:
        """Copies of the counters that travel beside the vector, by name; none where they are "local"."""
        own = {} if self.integers == "local" else dict(self.module.named_buffers())
        return {a.name: own[a.name].detach().clone() for a in self.schema.of_kind("integer") if own}

    def merge_integers(self, others: Sequence[Mapping[str, Tensor]]) -> None:
        """Take up the counters of n nodes, one mapping each (add this node's own to count it), by the policy.

        "median" is the lower of two middle values: one that a node did send. "max" trusts every node. ModelError for
        other names, shapes or dtypes.
        """
        if self.integers == "local" or not others:
            return
        own = dict(self.module.named_buffers())
        for array in self.schema.of_kind("integer"):
            sent = [each.get(array.name) for each in others]
            fitting = [s for s in sent if s is not None and (tuple(s.shape), s.dtype) == (array.shape, array.dtype)]
            if len(fitting) < len(sent):
                raise ModelError(f"{len(sent) - len(fitting)} of {len(sent)} nodes sent no {array.name} that fits")
            ordered = torch.stack(fitting).sort(dim=0).values
            own[array.name].copy_(ordered[-1 if self.integers == "max" else (len(sent) - 1) // 2])

    def digest(self, *, whole: bool = False) -> str:
        """SHA-256, 64 hex digits, of the name, dtype, shape and bytes of every array that nodes share.

        Buffers count where their policy shares them, as local ones differ by design; with `whole` all count.
        """
        self._check()
        total = hashlib.sha256()
        arrays = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        shared = {"parameter"} | ({"buffer"} if whole or self.buffers == "mix" else set())
        shared |= {"integer"} if whole or self.integers != "local" else set()
        for array in (each for kind in ORDER if kind in shared for each in self.schema.of_kind(kind)):
            total.update(f"{array.name}\0{array.dtype}\0{array.shape}\0".encode())
            total.update(arrays[array.name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def local_buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers that are no part of the vector, by name: what a checkpoint needs beside it."""
        mixed = {place.name for place in self._places}
        return {name: each.detach().clone() for name, each in self.module.named_buffers() if name not in mixed}

    def _check(self) -> None:
        """That the module's arrays still are the vector: `module.to()` and an assignment give it others."""
        for place in self._places:
            now = place.owner._parameters.get(place.key, place.owner._buffers.get(place.key))
            if now is None or now.data_ptr() != place.address or now.dtype != self._flat.dtype:
                raise ModelError(
                    f"{place.name} is no longer part of the model's vector: change dtype or device, or replace "
                    "arrays, before the ModelVector is made"
                )


def is_finite(values: Tensor) -> bool:
    """Whether no number is NaN or Inf. A finite sum has no such part; one that is not may have overflowed."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def check_finite(values: Tensor) -> None:
    """NonFiniteRows if a number of the vector is NaN or Inf."""
    if not is_finite(values):
        raise NonFiniteRows(f"{int((~values.isfinite()).sum())} of the vector's {len(values)} numbers are NaN or Inf")


class _Place(NamedTuple):
    """Where the module keeps one array of the vector, and where its numbers should be."""

    name: str
    owner: nn.Module
    key: str
    address: int
