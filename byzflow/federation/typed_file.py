"""A file of plain data, TOML, YAML or JSON, as typed values; every error names the file, the key and the next step."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec

from byzflow.errors import ByzflowError, SpecError, did_you_mean

T = TypeVar("T")
LARGEST = 1 << 20  # characters: a configuration is written by hand
Key = str | int


def read(path: str | Path) -> dict[str, Any]:
    """The keys and values of a file, by what its name ends on: .toml, .yaml, .yml or .json.

    Raises SpecError with file, line and column for what does not read, and for YAML where PyYAML is not installed.
    """
    path = Path(path)
    readers = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml, ".json": _json}
    reader = readers.get(path.suffix.lower())
    if not path.exists():
        raise SpecError(f"{path} cannot be read: No such file or directory")
    if reader is None:
        raise SpecError(f"{path}: a configuration ends in {', '.join(readers)}, not {path.suffix or 'nothing'}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > LARGEST:
        raise SpecError(f"{path} has {len(text)} characters, a configuration has at most {LARGEST}")
    try:
        data = reader(text, path)
    except RecursionError:
        raise SpecError(f"{path}: nested too deep") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path} must hold keys and values at its top, got {type(data).__name__}")
    return data


def typed(data: Mapping[str, Any], kind: type[T], source: str | Path) -> T:
    """The data as a struct of this kind. Raises SpecError: `source`, path, what it must be, its value."""
    for keys, known in _unknown(data, kind):
        raise fault(source, keys, f"unknown key; {did_you_mean(str(keys[-1]), known)}")
    try:
        return msgspec.convert(data, kind, str_keys=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `")
        keys = _keys(where.rstrip("`"))
        raise fault(source, keys, _told(what, _at(data, keys), kind, keys)) from None


@contextmanager
def at(key: str) -> Iterator[None]:
    """Name the key that an error comes from."""
    try:
        yield
    except ByzflowError as error:
        raise SpecError(f"{key}: {error}") from error


def fault(source: str | Path, keys: Sequence[Key], what: str) -> SpecError:
    """What is wrong with a key; with its line, if the source is the Path of a YAML file."""
    line = _line(source, keys) if isinstance(source, Path) and source.suffix.lower() in (".yaml", ".yml") else 0
    return SpecError(f"{source}{f', line {line}' if line else ''}: {shown(keys)}: {what}")


def shown(keys: Sequence[Key]) -> str:
    """A path as people write it: `nodes.roles`, `workers[2].id`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".") or "the file"


def fields_of(kind: Any) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields of a struct, by the names that files use; none of what is no struct."""
    found = _struct(kind)
    return {} if found is None else {field.encode_name: field for field in msgspec.structs.fields(found)}


def _toml(text: str, path: Path) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at ")
        place = f", {where.rstrip(')')}" if where else ""
        raise SpecError(f"{path}{place}: not TOML: {what[:1].lower() + what[1:]}") from None


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise SpecError(f"{path} is YAML, which needs PyYAML: pip install pyyaml; JSON works without it") from None
    try:
        return yaml.safe_load(text)
    except ValueError as error:  # such as a date that is none
        raise SpecError(f"{path}: not YAML that can be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise SpecError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or type(error).__name__}") from None


def _line(path: Path, keys: Sequence[Key]) -> int:
    """Of the last of the keys that is there, from 1; 0 if none is."""
    import yaml

    node, line = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), 0
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


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None


def _unknown(data: Any, kind: Any, at: tuple[Key, ...] = ()) -> Iterator[tuple[list[Key], list[str]]]:
    """The keys that nobody knows, each as its path, and what is known there."""
    fields = fields_of(kind)
    if isinstance(data, Mapping) and fields:
        for key, value in data.items():
            if key not in fields:
                yield [*at, str(key)], list(fields)
            else:
                yield from _unknown(value, fields[key].type, (*at, key))
    elif isinstance(data, list) and fields:
        for place, each in enumerate(data):
            yield from _unknown(each, kind, (*at, place))


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    """The struct in a type such as `Server | None` or `tuple[Worker, ...]`."""
    for each in (kind, *get_args(kind)):
        if isinstance(each, type) and issubclass(each, msgspec.Struct):
            return each
    return None


def _keys(path: str) -> list[Key]:
    """Of msgspec's way to write them: `$.workers[0].id`, where it writes [...] for any place."""
    parts = path.removeprefix("$").replace("[", ".").replace("]", "").split(".")
    return [int(part) if part.isdigit() else part for part in parts if part]


def _at(data: Any, keys: Sequence[Key]) -> Any:
    for key in keys:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _told(what: str, value: Any, kind: Any, keys: Sequence[Key]) -> str:
    """msgspec's message with the value in it, and a suggestion where only some words are allowed."""
    choices = _choices(kind, keys)
    if what.startswith("Invalid enum") and choices:
        return f"no such choice {value!r}; {did_you_mean(str(value), choices)}"
    expected = what.partition(", got ")[0].replace("Expected ", "must be ").replace("`", "").replace("| null", "")
    return f"{expected.strip()}, got {value!r}" if what.startswith("Expected") else what[:1].lower() + what[1:]


def _choices(kind: Any, keys: Sequence[Key]) -> list[str]:
    for key in (each for each in keys if isinstance(each, str)):
        field = fields_of(kind).get(key)
        kind = None if field is None else field.type
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    arms = [kind, *get_args(kind)]
    return [str(word) for arm in arms if get_origin(arm) is Literal for word in get_args(arm)]
