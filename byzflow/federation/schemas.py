"""Schemas: kinds of federation by name. A schema is a function of a configuration, registered by whoever has it.

    @schema.register("two_rings", aliases=("TwoRings",))
    def two_rings(config):
        return Federation(...)                          # or a History, or any result of a run of its own

    schema_factory.register("MyCustomSchema", executor) # the same, for a function that exists already

A package offers its own by the hook `byzflow_schemas`, a list of `Schema`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from byzflow.errors import PluginError, SpecError, UnknownOperator
from byzflow.federation.build import build
from byzflow.federation.config import Config
from byzflow.federation.federation import Federation
from byzflow.federation.typed_file import at
from byzflow.registry import canonical, installed

Make = TypeVar("Make", bound=Callable[..., Any])


@dataclass(frozen=True)
class Schema:
    """One schema: `make(config)`, or `make(config, log)` as Red's executors are, gives a `Federation` or a result."""

    name: str
    make: Callable[..., Any]
    aliases: tuple[str, ...] = ()

    def __call__(self, config: Any, log: Any = None) -> Any:
        """What it makes of a configuration; `log` is a logger for those that take one."""
        takes = inspect.signature(self.make).parameters
        if len(takes) < 2:
            return self.make(config)
        return self.make(config, logging.getLogger("byzflow") if log is None else log)


class Schemas:
    """Schemas by name and alias; `-`, `_` and case do not matter. Those of plugins are found when they are needed."""

    def __init__(self, plugins: Callable[[], Iterable[Schema]] = tuple) -> None:
        self._plugins, self._known, self._asked = plugins, dict[str, Schema](), False

    @overload
    def register(self, name: str, make: Make, *, aliases: tuple[str, ...] = ()) -> Make: ...

    @overload
    def register(self, name: str, make: None = None, *, aliases: tuple[str, ...] = ()) -> Callable[[Make], Make]: ...

    def register(self, name: str, make: Make | None = None, *, aliases: tuple[str, ...] = ()) -> Any:
        """Add a schema; without a function, a decorator. PluginError for a name that another one has."""
        if make is None:

            def decorate(function: Make) -> Make:
                self.add(Schema(name, function, aliases))
                return function

            return decorate
        self.add(Schema(name, make, aliases))
        return make

    def add(self, schema: Schema) -> None:
        """Add a schema; the same one again changes nothing. PluginError for a name that another one has."""
        if not callable(schema.make):
            raise PluginError(f"schema {schema.name!r} must be a function of a config, got {schema.make!r}")
        keys = [_key(name) for name in (schema.name, *schema.aliases)]
        for key in keys:
            other = self._known.get(key, schema)
            if other.make is not schema.make:
                raise PluginError(f"the schema name {key!r} is taken by {other.name!r}: choose another one")
        self._known |= dict.fromkeys(keys, schema)

    def find(self, name: str) -> Schema:
        """The schema of a name or alias; UnknownOperator suggests."""
        known = self._all()
        if _key(name) not in known:
            names = {spelt for each in known.values() for spelt in (each.name, *each.aliases)}
            raise UnknownOperator(name, names, "schema")
        return known[_key(name)]

    def names(self) -> list[str]:
        """All names, without aliases."""
        return sorted({each.name for each in self._all().values()})

    def _all(self) -> Mapping[str, Schema]:
        if not self._asked:
            self._asked = True
            for each in self._plugins():
                self.add(each)
        return self._known


def _key(name: str) -> str:
    return canonical(name).replace("_", "")


schema = schema_factory = Schemas(lambda: installed().schemas)
"""The schemas of this process; the second name is Red's."""


def of(config: Config) -> Schema:
    """The schema of a configuration: the one it names, else star or custom by its topology."""
    named = config.federation.schema or ("star" if config.federation.topology in ("", "star") else "custom")
    with at("federation.schema"):
        return schema.find(named)


@schema.register("star", aliases=("StarFederatedLearning", "TraditionalFederatedLearning"))
def star(config: Config) -> Federation:
    """A centre that aggregates what its workers send."""
    return build(config, _graph(config, "star", ("star",)))


@schema.register("ring", aliases=("RingFederatedLearning",))
def ring(config: Config) -> Federation:
    """Each node with two neighbours."""
    return build(config, _graph(config, "ring", ("ring",)))


@schema.register("mesh", aliases=("MeshFederatedLearning",))
def mesh(config: Config) -> Federation:
    """Each node with all others."""
    return build(config, _graph(config, "mesh", ("mesh", "full", "complete")))


@schema.register("k_regular", aliases=("KConnectFederatedLearning",))
def k_regular(config: Config) -> Federation:
    """Each node with k neighbours, 4 unless the topology says how many."""
    return build(config, _graph(config, "k_regular:4", ("k_regular", "random_regular")))


@schema.register("cluster", aliases=("ClusterFederatedLearning",))
def cluster(config: Config) -> Federation:
    """Groups that mix inside each round, and by their heads now and then; or a graph of groups with links."""
    return build(config, _graph(config, "cluster", ("cluster", "clusters", "two_worlds")))


@schema.register("custom", aliases=("DecentralizedFederatedLearning", "CustomFederatedLearning"))
def custom(config: Config) -> Federation:
    """Any graph without a centre; a ring unless the topology says which."""
    return build(config, _graph(config, "ring", ()))


BUILT_IN = frozenset({star, ring, mesh, k_regular, cluster, custom})
"""Those that build a federation and run nothing, so that building it is a check."""


def _graph(config: Config, default: str, fitting: tuple[str, ...]) -> str:
    """The topology of a configuration, if it is one of the schema's. Raises SpecError."""
    given = config.federation.topology or default
    name = canonical(given.partition(":")[0].partition("(")[0])
    if fitting and name not in fitting:
        raise SpecError(
            f"federation.topology: the schema {config.federation.schema!r} has the topology {' or '.join(fitting)}, "
            f"got {given!r}: leave one of them out"
        )
    if not fitting and name == "star":
        raise SpecError("federation.topology: a star has a centre: set federation.schema to star")
    return given
