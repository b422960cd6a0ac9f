"""The file that says who the nodes of a run are, where they are reached, and how they train; YAML or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from byzflow.errors import SpecError, did_you_mean

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
        raise SpecError(f"no id {id} among the {group} of the file: it has {', '.join(str(m.id) for m in members)}")


def read(path: str | Path) -> NodesFile:
    """The file as typed values. Raises SpecError that names file, line and key for what does not read or fit."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    yaml = path.suffix.lower() in (".yaml", ".yml")
    data = _yaml(text, path) if yaml else _json(text, path)
    if not isinstance(data, dict):
        raise SpecError(f"{path} must hold keys and values at its top, such as server: and workers:")

    def fault(keys: Sequence[str | int], what: str) -> SpecError:
        line = _line(text, keys) if yaml else 0
        return SpecError(f"{path}{f', line {line}' if line else ''}: {_shown(keys)}: {what}")

    for keys, known in _unknown(data, NodesFile):
        raise fault(keys, f"unknown key; {did_you_mean(str(keys[-1]), known)}")
    try:
        file = msgspec.convert(data, NodesFile)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise fault(_keys(where.rstrip("`")), what[:1].lower() + what[1:]) from None
    for group in ("workers", "nodes"):
        seen: set[int] = set()
        for place, member in enumerate(getattr(file, group)):
            if member.id in seen:
                raise fault([group, place, "id"], f"{member.id} is there twice")
            seen.add(member.id)
    return file


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise SpecError(f"{path} is YAML, which needs PyYAML: pip install pyyaml; JSON works without it") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise SpecError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or type(error).__name__}") from None
    except (RecursionError, ValueError) as error:
        raise SpecError(f"{path}: not YAML that can be read: {type(error).__name__}") from None


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise SpecError(f"{path}: nested too deep") from None


def _unknown(data: Any, kind: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[list[str | int], list[str]]]:
    """The keys that nobody knows, each as its path, and what is known there."""
    parts = [each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    if isinstance(data, dict) and parts:
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(parts[0])}
        for key, value in data.items():
            if key not in fields:
                yield [*at, str(key)], list(fields)
            else:
                yield from _unknown(value, fields[key], (*at, key))
    elif isinstance(data, list) and parts:
        for place, each in enumerate(data):
            yield from _unknown(each, parts[0], (*at, place))


def _keys(path: str) -> list[str | int]:
    """Of msgspec's way to write them: `.workers[0].id`, where it writes [...] for any place."""
    keys: list[str | int] = []
    for part in path.replace("[", ".").replace("]", "").split("."):
        if part and part != "..":
            keys.append(int(part) if part.isdigit() else part)
    return keys


def _shown(keys: Sequence[str | int]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".") or "the file"


def _line(text: str, keys: Sequence[str | int]) -> int:
    """Of the last of the keys that is there, from 1; 0 if none is."""
    import yaml

    node, line = yaml.compose(text, Loader=yaml.SafeLoader), 0
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = [(name, value) for name, value in node.value if name.value == str(key)]
            if not found:
                break
            line, node = found[-1][0].start_mark.line + 1, found[-1][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def notes(file: NodesFile) -> list[str]:
    """What the file holds that changes nothing, said rather than ignored in silence."""
    told = []
    for key in ("host", "port", "bind_host"):
        if any(getattr(each, key) not in (None, "0.0.0.0") for each in file.workers):
            told.append(f"workers[].{key} is for your information: workers only dial the server")
    return told
