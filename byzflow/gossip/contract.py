"""What all nodes of a run over a network agree on, and how a message is checked against it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from byzflow.actors.link import Frame
from byzflow.actors.wire import Limits
from byzflow.errors import ActorError, WireError

MESSAGE, REGISTER, REGISTERED, BUSY = "message", "register", "registered", "busy"
LAST = 1 << 40  # no round has a higher number
HEX = frozenset("0123456789abcdef")
Term = str | int | float | None
Check = Callable[["Contract", Any], str | None]
"""What is wrong with a value; None if nothing."""


@dataclass(frozen=True)
class Contract:
    """The terms of one run, the same at every node.

    run : a name; links of another run are refused.
    schema : the hash of the model's schema, see `byzflow.federation.schema`.
    numbers, dtype : of a model's or gradient's flat vector.
    terms : further settings that must be equal, such as lr and momentum.
    arrays, dims : how many arrays one message may have, and of how many dimensions each; a model and its momentum.
    """

    run: str
    schema: str
    numbers: int
    dtype: torch.dtype = torch.float32
    terms: Mapping[str, Term] = field(default_factory=dict)
    arrays: int = 2
    dims: int = 1

    @property
    def limits(self) -> Limits:
        """Of one frame: a model and its momentum at most. Computed here; what a peer announces changes nothing."""
        room = 2 * self.numbers * self.dtype.itemsize + 1024
        return Limits(header=1 << 14, body=room, arrays=self.arrays, dims=self.dims)

    def registration(self, node: Any) -> Frame:
        """The first frame of who dials."""
        return Frame(REGISTER, 1, [node, self.run, self.schema, dict(self.terms)])

    def registered(self, frame: Frame) -> Any:
        """Who asks to be let in. Raises ActorError if it is of another run, or has other terms."""
        match frame:
            case Frame(kind="register", number=1, body=[str() | int() as node, str(run), str(schema), dict(terms)]):
                pass
            case _:
                raise ActorError("the first frame must be a registration")
        if isinstance(node, bool) or not all(isinstance(each, str | int | float | None) for each in terms.values()):
            raise ActorError("a registration that does not read")
        if run != self.run:
            raise ActorError(f"this is run {self.run!r}, not {run[:40]!r}: is `run` equal in both files?")
        for name in {**self.terms, **terms}:
            mine, theirs = self.terms.get(name), terms.get(name)
            if mine != theirs:
                raise ActorError(
                    f"{name!s:.60} is {theirs!r:.40} there, {mine!r:.40} here: all nodes need the same file and data"
                )
        if schema != self.schema:
            raise ActorError("the models differ in their arrays: all nodes need the same model and data set")
        return node

    def message(self, type: str, value: Any, round: int | None, version: int) -> Frame:
        """A message as a frame."""
        return Frame(MESSAGE, 1, [self.run, self.schema, type, round, version, value])

    def opened(self, frame: Frame) -> tuple[str, Any, int | None, int]:
        """Type, value, round and graph version. Raises WireError for what is no message of this run."""
        match frame:
            case Frame(kind="message", number=1, body=[str(run), str(schema), str(type), round, int(version), value]):
                pass
            case _:
                raise WireError("not a message")
        if run != self.run or schema != self.schema:
            raise WireError("of another run or model")
        if round is not None and (not isinstance(round, int) or isinstance(round, bool) or not 0 <= round < LAST):
            raise WireError("a round that is none")
        return type[:40], value.detach() if isinstance(value, Tensor) else value, round, version


def vector(contract: Contract, value: Any) -> str | None:
    """A flat vector of the model's length and dtype; None says that there is none in this round."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return "no vector"
    if value.shape != (contract.numbers,) or value.dtype != contract.dtype:
        return "a vector of another length or dtype"
    return None


def digest(contract: Contract, value: Any) -> str | None:
    """A SHA-256, 64 hex digits."""
    sound = isinstance(value, str) and len(value) == 2 * hashlib.sha256().digest_size and set(value) <= HEX
    return None if sound else "no digest"  # it is shown to people, and kept


def nothing(contract: Contract, value: Any) -> str | None:
    """A message whose type says all."""
    return None if value is None else "a value where none belongs"


def state(contract: Contract, value: Any) -> str | None:
    """A model to go on from: how many rounds there will be, the model, and its momentum or None."""
    match value:
        case [int(rounds), Tensor() as model, None | Tensor() as momentum] if rounds >= 0:
            parts = [each for each in (model, momentum) if each is not None]
            return next((fault for each in parts if (fault := vector(contract, each))), None)
    return "no state"
