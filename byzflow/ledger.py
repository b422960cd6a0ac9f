"""What each node aggregated in each round, written down so that anybody can compute it again and compare bits.

    DIR/NODE.jsonl       one line a round: who sent what (by SHA-256), by which operator, and what came of it
    DIR/inputs/SHA256    the arrays themselves, if they are kept; `sha256sum` of a file is its name

An array is digested as the bytes of its file: one line of JSON, [[name, dtype, shape], ...] with null for the name of
an array without one, and then the raw bytes. Rows are aggregated in the order of their senders' ids.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import torch

from byzflow.errors import ByzflowError, one_line

INPUTS = "inputs"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One round of one node; arrays are told by their digests."""

    node: str
    round: int
    operator: str
    inputs: dict[str, str]  # sender -> digest, by sender
    output: str
    extras: dict[str, str | int] = {}  # what else the operator took: a centre's digest, the round's number


@dataclass(frozen=True)
class Fault:
    """What does not fit, and where."""

    node: str
    round: int | None
    what: str


def as_bytes(value: Any) -> bytes:
    """An array, a tensor, or a mapping of names to these, as the bytes that are digested and kept."""
    leaves = value if isinstance(value, Mapping) else {None: value}
    heads: list[tuple[str | None, str, list[int]]] = []
    bodies: list[bytes] = []
    for name, leaf in leaves.items():
        tensor = torch.as_tensor(leaf).detach().cpu().contiguous()
        heads.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)))
        bodies.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return msgspec.json.encode(heads) + b"\n" + b"".join(bodies)


def from_bytes(data: bytes) -> Any:
    """The inverse: a tensor, or a dict of tensors. Raises ByzflowError."""
    head, _, body = data.partition(b"\n")
    leaves: dict[str | None, torch.Tensor] = {}
    at = 0
    try:
        for name, dtype, shape in msgspec.json.decode(head, type=list[tuple[str | None, str, list[int]]]):
            kind = getattr(torch, dtype)
            size = math.prod(shape) * torch.empty(0, dtype=kind).element_size()
            raw = np.frombuffer(bytearray(body[at : at + size]), np.uint8)
            flat = torch.from_numpy(raw).view(kind) if size else torch.empty(0, dtype=kind)
            leaves[name], at = flat.reshape(shape), at + size
    except (msgspec.MsgspecError, AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise ByzflowError(f"a stored array does not read: {error}") from None
    if at != len(body):
        raise ByzflowError(f"a stored array has {len(body)} bytes where its head says {at}")
    return leaves[None] if list(leaves) == [None] else leaves


def digest(value: Any) -> str:
    """SHA-256 of an array's dtype, shape and bytes, in hex."""
    return hashlib.sha256(as_bytes(value)).hexdigest()


class Ledger:
    """The record of one node; a round that was recorded is on the disk. Appends to what is there.

    with Ledger("run/a.jsonl", node="a", keep_inputs="run/inputs") as ledger:
        ledger.record(round, "krum(f=1)", {"a": x, "b": y, ...}, output)
    """

    def __init__(self, file: str | Path, node: str, keep_inputs: str | Path | None = None) -> None:
        """`keep_inputs`: folder for the arrays; several nodes may share it, equal arrays are kept once.

        Raises ByzflowError for what cannot be written.
        """
        self.file, self.node = Path(file), node
        self.folder = None if keep_inputs is None else Path(keep_inputs)
        try:
            for folder in (self.file.parent, self.folder):
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
            self._out = self.file.open("ab+")
        except OSError as error:
            raise ByzflowError(f"the ledger {file} cannot be written: {error.strerror}") from None
        self._out.seek(0)
        text = self._out.read()
        self._out.truncate(text.rfind(b"\n") + 1)  # a line that was torn by a crash was never recorded

    def record(
        self,
        round: int,
        operator: Any,
        inputs: Mapping[str, Any],
        output: Any,
        extras: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Write down that `operator` made `output` of the rows of `inputs`, in the order of their senders' ids."""
        entry = Entry(
            self.node,
            round,
            str(operator),
            {sender: self._noted(inputs[sender]) for sender in sorted(inputs)},
            digest(output),
            {name: value if isinstance(value, int) else self._noted(value) for name, value in (extras or {}).items()},
        )
        self._out.write(msgspec.json.encode(entry) + b"\n")
        self._out.flush()
        os.fsync(self._out.fileno())
        return entry

    def rewind(self, round: int) -> None:
        """Drop the entries of this round and of those after it, which are made again."""
        self._out.seek(0)
        kept = 0
        for line in self._out:
            with suppress(msgspec.MsgspecError):  # a line that does not read stays for `check` to find
                if msgspec.json.decode(line, type=Entry).round >= round:
                    break
            kept += len(line)
        self._out.truncate(kept)
        os.fsync(self._out.fileno())

    def close(self) -> None:
        """End."""
        self._out.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _noted(self, value: Any) -> str:
        data = as_bytes(value)
        mark = hashlib.sha256(data).hexdigest()
        if self.folder is not None and not (self.folder / mark).exists():
            new = self.folder / f".{mark}.{os.getpid()}.{self.node.encode().hex()[:64]}"
            with new.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            new.replace(self.folder / mark)
        return mark


def entries(file: str | Path) -> Iterator[Entry | Fault]:
    """What a ledger holds; a line that does not read is a Fault, but for a last one without its end."""
    try:
        lines = Path(file).read_bytes().split(b"\n")
    except OSError as error:
        raise ByzflowError(f"{file} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines[:-1], 1):
        try:
            yield msgspec.json.decode(line, type=Entry)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield Fault(Path(file).stem, None, f"line {number} of {Path(file).name} does not read")


def check(ledger: str | Path, inputs: str | Path) -> list[Fault]:
    """Compute every output of a ledger again from the arrays that were kept, and compare bits: what does not fit.

    Bits are the same on one kind of machine and one version of byzflow and torch; a sum may round otherwise elsewhere.
    """
    faults: list[Fault] = []
    rounds: list[int] = []
    for entry in entries(ledger):
        if isinstance(entry, Fault):
            faults.append(entry)
            continue
        rounds.append(entry.round)
        if reason := _differs(entry, Path(inputs)):
            faults.append(Fault(entry.node, entry.round, reason))
    node = Path(ledger).stem
    faults += [
        Fault(node, k, f"{rounds.count(k)} entries for one round") for k in sorted(set(rounds)) if rounds.count(k) > 1
    ]
    faults += [Fault(node, b, f"recorded after round {a}") for a, b in pairwise(rounds) if b < a]
    return faults


def _differs(entry: Entry, folder: Path) -> str:
    """Why an entry's output is not what its operator makes of its inputs; "" if it is."""
    from byzflow.api import aggregate

    if list(entry.inputs) != sorted(entry.inputs):
        return "the senders are not in order"
    try:
        rows = [_kept(folder, mark, f"the input of {sender!r}") for sender, mark in entry.inputs.items()]
        extras: dict[str, Any] = {
            name: value if isinstance(value, int) else _kept(folder, value, f"the extra {name!r}")
            for name, value in entry.extras.items()
        }
        again = digest(aggregate(entry.operator, rows, **extras))
    except ByzflowError as error:
        return str(error)
    except Exception as error:  # of a plugin, or for extras that are none
        return one_line(error)
    return "" if again == entry.output else f"{entry.operator} of the inputs is {again[:12]}, not {entry.output[:12]}"


def _kept(folder: Path, mark: str, what: str) -> Any:
    if len(mark) != 64 or not set(mark) <= set("0123456789abcdef"):  # it becomes a file's name
        raise ByzflowError(f"{what} has no SHA-256 for a digest: {mark[:80]!r}")
    try:
        data = (folder / mark).read_bytes()
    except OSError:
        raise ByzflowError(f"{what} is lost: {mark[:12]} is not in {folder}") from None
    if hashlib.sha256(data).hexdigest() != mark:
        raise ByzflowError(f"{what} was changed: {mark[:12]} has other bytes in {folder}")
    return from_bytes(data)
