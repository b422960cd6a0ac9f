"""What one file says of a federation: its keys, their ranges and defaults; overrides and sweeps over them."""

from __future__ import annotations

import copy
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from byzflow.errors import SpecError, did_you_mean
from byzflow.federation.typed_file import fields_of, read, typed

MOST_RUNS = 1000


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""


class FederationSection(Section, frozen=True):
    """Who hears whom, and how the rounds go."""

    schema: Annotated[str, Meta(description="star, ring, mesh, k_regular, cluster, custom, or a registered one")] = ""
    topology: Annotated[str, Meta(description="star, cluster, or a graph such as ring or k_regular:4")] = ""
    rounds: Annotated[int, Meta(ge=1, le=1_000_000, description="rounds")] = 50
    seed: Annotated[int, Meta(ge=0, description="of data, models, batches and sampling")] = 0
    fraction: Annotated[float, Meta(gt=0, le=1, description="share of the nodes sampled for a round")] = 1.0
    quorum: (
        Annotated[int, Meta(ge=1, description="vectors that a node needs for a round; all but f unless said")] | None
    ) = None
    deadline: Annotated[float, Meta(gt=0, description="seconds to wait for more; none unless said")] | None = None
    patience: Annotated[float, Meta(gt=0, description="seconds after which a wait for the quorum is given up")] = 60.0
    exchange: Annotated[
        Literal["gradients", "updates", ""],
        Meta(description="what a star's nodes send; updates where they take several steps"),
    ] = ""
    min_nodes: Annotated[int, Meta(ge=1, description="below so many live training nodes the run stops")] = 1
    checkpoint: Annotated[str, Meta(description="a folder for the whole state, relative to this file")] | None = None
    checkpoint_every: Annotated[int, Meta(ge=1, description="rounds between two checkpoints")] = 1
    resume: Annotated[bool, Meta(description="go on from the checkpoint if there is one, as --resume does")] = False
    ledger: Annotated[str, Meta(description="a folder for what was aggregated: see byzflow ledger check")] | None = None


class ClustersSection(Section, frozen=True):
    """Groups, for the topology cluster; see `byzflow.gossip.cluster.Clusters`."""

    count: (
        Annotated[int, Meta(ge=1, description="how many; the square root of half the nodes, rounded, unless said")]
        | None
    ) = None
    period: Annotated[int, Meta(ge=1, description="rounds between two mixings of the clusters' heads")] = 5
    every: Annotated[int, Meta(ge=0, description="rounds between groupings by similarity; 0 keeps the groups")] = 0
    between: Annotated[str, Meta(description="the rule over the heads' models")] = "median"


class NodesSection(Section, frozen=True):
    """Who takes part."""

    count: Annotated[int, Meta(ge=2, le=10_000, description="nodes, Byzantine ones included")] = 10
    byzantine: Annotated[
        Annotated[int, Meta(ge=0)] | tuple[Annotated[int, Meta(ge=0)], ...],
        Meta(description="how many lie, the last ones, or their ids"),
    ] = 0
    roles: Annotated[
        str | dict[int, str],
        Meta(description="train, eval, test or several joined by '-', of all nodes, or by id"),
    ] = "train-eval"
    backend: Annotated[str, Meta(description="where they live: inline, thread:, process:, ray: or tcp://host:port")] = (
        "inline"
    )
    workers: Annotated[int, Meta(ge=1, description="that the nodes share; one each unless said")] | None = None
    max_restarts: Annotated[int, Meta(ge=0, description="how often a node is made again when its worker dies")] = 3


class DataSection(Section, frozen=True):
    """Which data, and who has which of it."""

    name: Annotated[str, Meta(description="digits, synthetic, mnist, fashion_mnist or cifar10")] = "digits"
    root: Annotated[str, Meta(description="the folder of files")] = "./data"
    partition: Annotated[str, Meta(description="iid, dirichlet, label_skew or quantity_skew")] = "iid"
    alpha: Annotated[float, Meta(gt=0, description="of dirichlet and quantity_skew; 0.5 unless said")] | None = None
    share: Annotated[float, Meta(gt=0, le=1, description="of label_skew: of the one preferred label")] | None = None
    per_node: Annotated[int, Meta(ge=1, description="of label_skew: labels that a node sees")] | None = None
    own_test: Annotated[float, Meta(gt=0, lt=1, description="share of its samples that a node is tested on")] | None = (
        None
    )
    test_share: Annotated[float, Meta(gt=0, lt=1, description="of digits: the test set; 0.25 unless said")] | None = (
        None
    )
    train: Annotated[int, Meta(ge=1, description="of synthetic: samples to learn from; 2000 unless said")] | None = None
    test: Annotated[int, Meta(ge=1, description="of synthetic: samples to test on; 500 unless said")] | None = None
    features: Annotated[int, Meta(ge=1, description="of synthetic; 32 unless said")] | None = None
    classes: Annotated[int, Meta(ge=1, description="of synthetic; 10 unless said")] | None = None
    spread: (
        Annotated[float, Meta(gt=0, description="of synthetic: how far apart the classes are; 0.55 unless said")] | None
    ) = None


class ModelSection(Section, frozen=True):
    """What they learn."""

    name: Annotated[str, Meta(description="softmax, mlp, cnn, or module:attr, called without arguments")] = "mlp"


class TrainingSection(Section, frozen=True):
    """How a node learns."""

    lr: Annotated[float, Meta(gt=0, description="step size")] = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1, description="of each node's steps")] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, description="of each node's own steps")] = 0.0
    batch_size: Annotated[int, Meta(ge=1, description="samples")] = 32
    local_steps: Annotated[int, Meta(ge=1, description="steps of a node in a round")] = 1
    local_epochs: Annotated[int, Meta(ge=1, description="the same, as passes over the node's data")] | None = None
    prox_mu: Annotated[float, Meta(ge=0, description="FedProx: pulls local steps towards the round's start")] = 0.0
    server_lr: Annotated[float, Meta(gt=0, description="of the step that all take with an aggregated update")] = 1.0
    server_momentum: Annotated[float, Meta(ge=0, lt=1, description="of the same step")] = 0.0


class DefenceSection(Section, frozen=True):
    """What is made of the vectors that come."""

    rule: Annotated[str, Meta(description="a rule or a chain, such as nnm | trimmed_mean")] = "nnm | trimmed_mean"
    f: (
        Annotated[int, Meta(ge=0, description="liars to bear of those that a node hears; as many as lie unless said")]
        | None
    ) = None
    sample_weights: Annotated[
        bool, Meta(description="whether nodes count by their samples, twice the median at most, in rules such as mean")
    ] = False


class AttackSection(Section, frozen=True):
    """What the Byzantine nodes send."""

    name: Annotated[str, Meta(description="an attack, such as sign_flip or alie(z=1.5)")] = "sign_flip"
    knowledge: Annotated[
        Literal["omniscient", "own"], Meta(description="what they see: all honest vectors, or data of their own")
    ] = "omniscient"


class MetricsSection(Section, frozen=True):
    """What is measured, and where it goes."""

    file: Annotated[str, Meta(description="a .csv or .jsonl file, one line a round")] | None = None
    every: Annotated[int, Meta(ge=1, description="rounds between evaluations; the last one counts always")] = 1


class Config(Section, frozen=True):
    """The whole file."""

    federation: FederationSection = FederationSection()
    clusters: ClustersSection = ClustersSection()
    nodes: NodesSection = NodesSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    defence: DefenceSection = DefenceSection()
    attack: AttackSection = AttackSection()
    metrics: MetricsSection = MetricsSection()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


PATHS = ("federation.checkpoint", "federation.ledger")
"""Keys that are folders: in a file relative to it, on the command line to where that is typed."""
Note = Callable[[str], None]
"""What is told of keys that change nothing."""


def load(path: str | Path, overrides: Iterable[str] = (), note: Note = warnings.warn) -> Config:
    """The file with `key=value` overrides, such as "nodes.byzantine=2". A sweep in it is left out; see `sweep`.

    Raises SpecError that names the file, the key, what it must be and what it is.
    """
    data = plain(path, overrides, note)
    data.pop("sweep", None)
    return typed(data, Config, str(path))


def plain(path: str | Path, overrides: Iterable[str] = (), note: Note = warnings.warn) -> dict[str, Any]:
    """The file's data, of Red's flat keys too, with overrides in it; not yet checked."""
    from byzflow.federation import red_config

    data = read(path)
    if red_config.is_red(data):
        data = red_config.translated(data, str(path), note)
    if isinstance(section := data.get("federation"), dict):
        section.update({name: _beside(path, f"federation.{name}", value) for name, value in section.items()})
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise SpecError(f"--set {override}: write key=value, such as nodes.byzantine=2")
        put(data, key.strip(), value_of(key.strip(), value.strip()), "--set")
    return data


def sweep(
    path: str | Path, overrides: Iterable[str] = (), sweeps: Iterable[str] = (), note: Note = warnings.warn
) -> list[tuple[dict[str, Any], Config]]:
    """All runs of a file: what each changes, by key, and its configuration; one run where nothing is swept.

    A sweep is "key=value,value,..." or a list in the file's table [sweep]; several give every combination, the last
    one changing first. All are checked. Raises SpecError as `load`, and for more than 1000 runs.
    """
    data = plain(path, overrides, note)
    axes: dict[str, list[Any]] = {}
    given = data.pop("sweep", {})
    if not isinstance(given, Mapping):
        raise SpecError(f"{path}: sweep: must be a table of lists, such as \"defence.rule\" = ['mean', 'median']")
    for key, values in _flat(given):
        if not isinstance(values, list) or not values:
            raise SpecError(f"{path}: sweep.{key}: must be a list of values, got {values!r}")
        axes[key] = [_beside(path, key, value) for value in values]
    for each in sweeps:
        key, equals, text = each.partition("=")
        if not equals or not text.strip():
            raise SpecError(f"--sweep {each}: write key=value,value, such as training.lr=0.1,0.2")
        axes[key.strip()] = [value_of(key.strip(), part) for part in _split(text)]
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise SpecError(f"the sweep has {count} runs, at most {MOST_RUNS} are made: take fewer values")
    runs = []
    for chosen in product(*axes.values()):
        changed = copy.deepcopy(data)
        point = dict(zip(axes, chosen, strict=True))
        for key, value in point.items():
            put(changed, key, value, "sweep")
        told = ", ".join(f"{key}={value}" for key, value in point.items())
        runs.append((point, typed(changed, Config, f"{path} with {told}" if told else str(path))))
    return runs


def put(data: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set a dotted key in place. Raises SpecError with a suggestion for one that no file has."""
    known = [f"{section}.{name}" for section, field in fields_of(Config).items() for name in fields_of(field.type)]
    if key not in known and not key.startswith("nodes.roles."):
        raise SpecError(f"{source} {key}: unknown key; {did_you_mean(key, known)}")
    *tables, last = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise SpecError(f"{source} {key}: {table} holds {data!r}, no table")
    data[last] = value


def value_of(key: str, text: str) -> Any:
    """A value of this key as TOML has it: 2, 0.5, true, [1, 2] or "a b"; for keys that hold text it is the text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text
    section, _, name = key.partition(".")
    field = fields_of(fields_of(Config)[section].type).get(name) if section in fields_of(Config) else None
    holds_text = field is not None and isinstance(field.default, str) and not isinstance(value, dict | list)
    return text if holds_text and not isinstance(value, str) else value


def table() -> list[tuple[str, str, str, str]]:
    """Every key with its type and range, default and meaning; the tables of the docs are made of it."""
    rows = []
    for section, field in fields_of(Config).items():
        for name, each in fields_of(field.type).items():
            kind, meaning = _described(each.type)
            rows.append((f"{section}.{name}", kind, "" if each.default in (None, "") else str(each.default), meaning))
    return rows


def _beside(path: str | Path, key: str, value: Any) -> Any:
    """A value as it stands in this file: a folder is relative to the file."""
    return str(Path(path).parent / value) if key in PATHS and isinstance(value, str) else value


def _described(kind: Any) -> tuple[str, str]:
    """A type with its range in words, and its description."""
    info = msgspec.inspect.type_info(kind)
    meaning = ""
    parts: list[str] = []
    types = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    for each in types:
        if isinstance(each, msgspec.inspect.Metadata):
            meaning = (each.extra_json_schema or {}).get("description", meaning)
            inner = each.type
            each_types = inner.types if isinstance(inner, msgspec.inspect.UnionType) else (inner,)
            parts += [_word(one) for one in each_types]
        elif not isinstance(each, msgspec.inspect.NoneType):
            parts.append(_word(each))
    return " or ".join(dict.fromkeys(parts)), meaning


def _word(info: Any) -> str:
    if isinstance(info, msgspec.inspect.Metadata):
        return _word(info.type)
    if isinstance(info, msgspec.inspect.LiteralType):
        return ", ".join(str(word) for word in info.values if word)
    name = {
        "IntType": "int",
        "FloatType": "number",
        "StrType": "text",
        "BoolType": "true or false",
        "DictType": "table",
        "VarTupleType": "ids",
    }
    ranges = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    bounds = [f"{sign} {getattr(info, key):.10g}" for key, sign in ranges if getattr(info, key, None) is not None]
    return " ".join([name.get(type(info).__name__, "value"), " and ".join(bounds)]).strip()


def _flat(data: Mapping[str, Any], at: str = "") -> list[tuple[str, Any]]:
    """Nested tables as dotted keys."""
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{at}{key}.")
        else:
            found.append((f"{at}{key}", value))
    return found


def _split(text: str) -> Sequence[str]:
    """At commas that are in no bracket and no quote: a rule has commas of its own."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        quote = ("" if letter == quote else quote) if quote else (letter if letter in "'\"" else "")
        depth += 0 if quote else (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
