"""The file that says who the nodes of a run are, where they are reached, and how they train; YAML or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from byzflow.errors import SpecError
from byzflow.federation import typed_file
from byzflow.federation.typed_file import fault, typed

Count = Annotated[int, Meta(ge=1)]
Index = Annotated[int, Meta(ge=0)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
Kind = Literal["honest", "byzantine"]


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """How all nodes train; equal at all of them."""

    rounds: Index = 50
    batch_size: Count = 64
    learning_rate: Annotated[float, Meta(gt=0)] = 0.05
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    seed: int = 0
    dataset: str | None = None
    model: str | None = None
    partition: str = "iid"
    quorum: Count | None = None
    deadline: Seconds = 10.0
    patience: Seconds = 300.0
    evaluate_every: Index = 1


class Aggregation(msgspec.Struct, frozen=True, kw_only=True):
    """The robust rule."""

    method: str = "coordinate_wise_median"
    krum_f: Index | None = None
    krum_q: Count | None = None
    f: Index | None = None


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """The centre of a star."""

    host: str
    port: Port = 9000
    bind_host: str = "0.0.0.0"
    name: str = "server"
    keys: str | None = None


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of a star, or a node of a network without a centre."""

    id: Index
    host: str | None = None
    port: Port | None = None
    type: Kind = "honest"
    data_shard: Index | None = None
    attack: str | None = None
    attack_scale: float = -1.0
    bind_host: str = "0.0.0.0"
    name: str | None = None
    keys: str | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What the server keeps on its disk."""

    path: str
    every: Count = 1
    resume: bool = True


class NodesFile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    run: str = "byzflow"
    training: Training = Training()
    aggregation: Aggregation = Aggregation()
    server: Server | None = None
    workers: tuple[Member, ...] = ()
    nodes: tuple[Member, ...] = ()
    topology: str = "full"
    checkpoint: Checkpoint | None = None
    metrics: str | None = None

    def member(self, id: int, group: Literal["workers", "nodes"]) -> Member:
        """The worker or node of this id. Raises SpecError with the ids in the file."""
        members: tuple[Member, ...] = getattr(self, group)
        for each in members:
            if each.id == id:
                return each
        ids = ", ".join(str(each.id) for each in members) or f"none: write them below {group}:"
        raise SpecError(f"no id {id} among the {group} of the file: it has {ids}")


def read(path: str | Path) -> NodesFile:
    """The file as typed values. Raises SpecError that names file, line and key for what does not read or fit."""
    path = Path(path)
    file = typed(typed_file.read(path), NodesFile, path)
    for group in ("workers", "nodes"):
        seen: set[int] = set()
        for place, member in enumerate(getattr(file, group)):
            if member.id in seen:
                raise fault(path, [group, place, "id"], f"{member.id} is there twice")
            seen.add(member.id)
    return file


def notes(file: NodesFile) -> list[str]:
    """What the file holds that changes nothing, said rather than ignored in silence."""
    told = []
    for key in ("host", "port", "bind_host"):
        if any(getattr(each, key) not in (None, "0.0.0.0") for each in file.workers):
            told.append(f"workers[].{key} is for your information: workers only dial the server")
    return told
