"""Loads plugins and looks names up.

Four things that pluggy lets pass are errors here: a plugin that does not import (named with its package), two
packages that claim one entry-point name, two plugins that claim one operator name, and a misspelt hook.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING

import pluggy

from byzflow import hookspecs
from byzflow.errors import PluginError, UnknownOperator, did_you_mean, one_line
from byzflow.operators import Attack, Operator, PreAggregator

if TYPE_CHECKING:
    from byzflow.actors.backend import Backend
    from byzflow.federation.schemas import Schema

GROUP = "byzflow"
DISABLE = "BYZFLOW_DISABLE_PLUGINS"
KINDS = ("aggregator", "pre-aggregator", "attack")


@dataclass(frozen=True)
class Entry:
    """One registered operator class."""

    operator: type[Operator]
    kind: str
    plugin: str
    package: str


@dataclass(frozen=True)
class Registry:
    """Operator classes by name; `names` maps every name and alias to the one entry. Backends by their scheme."""

    entries: tuple[Entry, ...]
    names: Mapping[str, Entry]
    manager: pluggy.PluginManager | None = None

    def find(self, name: str, kind: str | None = None) -> Entry:
        """The entry of a name or alias, `-` read as `_` and case ignored. Raises UnknownOperator with a suggestion.

        Suggested are attacks alone where `kind` is "attack", and none of them where it is "aggregator".
        """
        entry = self.names.get(canonical(name))
        if entry is None:
            known = [n for n, e in self.names.items() if kind is None or (e.kind == "attack") == (kind == "attack")]
            what = "attack" if kind == "attack" else "operator"
            raise UnknownOperator(name, known, what, otherwise="`byzflow list` shows what there is")
        return entry

    def of_kind(self, kind: str | None = None) -> tuple[Entry, ...]:
        """All entries of one of KINDS, or all, by name."""
        chosen = (entry for entry in self.entries if kind is None or entry.kind == kind)
        return tuple(sorted(chosen, key=lambda entry: (KINDS.index(entry.kind), entry.operator.name)))

    @cached_property
    def backends(self) -> Mapping[str, type[Backend]]:
        """Backend classes by scheme; their modules are imported only when this is asked for. Raises PluginError."""
        return {} if self.manager is None else _backends(self.manager)

    @cached_property
    def schemas(self) -> tuple[Schema, ...]:
        """Schemas of plugins; their modules are imported only when this is asked for."""
        offered = [] if self.manager is None else self.manager.hook.byzflow_schemas()
        return tuple(schema for each in offered for schema in each)

    def including(self, operators: Iterable[type[Operator]]) -> Registry:
        """With these classes too, where their names are free: for operators that no plugin registers."""
        new = tuple(Entry(o, "aggregator", "none", "none") for o in operators if canonical(o.name) not in self.names)
        return replace(
            self,
            entries=(*self.entries, *new),
            names={**self.names, **{canonical(e.operator.name): e for e in new}},
        )


def canonical(name: str) -> str:
    """The one way a name is compared: lower case, `_` for `-`."""
    return name.strip().lower().replace("-", "_")


@cache
def installed() -> Registry:
    """The operators of all installed plugins, loaded once a process."""
    return load(tuple(entry_points(group=GROUP)))


def load(points: tuple[EntryPoint, ...]) -> Registry:
    """A registry of these entry points. Raises PluginError, naming the package."""
    disabled = {canonical(name) for name in os.environ.get(DISABLE, "").split(",") if name.strip()}
    claimed: dict[str, EntryPoint] = {}
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    for point in points:
        if canonical(point.name) in disabled:
            continue
        other = claimed.setdefault(point.name, point)
        if other is not point and (_package(other), other.value) != (_package(point), point.value):
            raise PluginError(
                f"packages {_package(other)} and {_package(point)} both claim the plugin name {point.name!r}: "
                f"uninstall one, or set {DISABLE}={point.name}"
            )
        if other is point:
            _register(manager, point)
    return _collect(manager, claimed)


def _register(manager: pluggy.PluginManager, point: EntryPoint) -> None:
    try:
        module = point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"plugin {point.name!r} of package {_package(point)} does not import: {one_line(error)}; "
            f"fix or uninstall it, or set {DISABLE}={point.name}"
        ) from error
    known = [name for name in vars(hookspecs) if name.startswith("byzflow_")]
    for name in _hooks(module):
        if name not in known:
            raise PluginError(
                f"plugin {point.name!r} of package {_package(point)} has no such hook to fill: {name!r}; "
                f"{did_you_mean(name, known)}"
            )
    manager.register(module, name=point.name)


def _hooks(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if hasattr(value, f"{GROUP}_impl")]


def _collect(manager: pluggy.PluginManager, points: Mapping[str, EntryPoint]) -> Registry:
    bases: dict[str, tuple[Callable[[], list[type[Operator]]], type[Operator]]] = {
        "aggregator": (manager.hook.byzflow_aggregators, Operator),
        "pre-aggregator": (manager.hook.byzflow_preaggregators, PreAggregator),
        "attack": (manager.hook.byzflow_attacks, Attack),
    }
    entries: list[Entry] = []
    names: dict[str, Entry] = {}
    for kind, (hook, base) in bases.items():
        for implementation in hook.get_hookimpls():  # type: ignore[attr-defined]
            plugin = implementation.plugin_name
            package = _package(points[plugin])
            try:
                offered = list(implementation.function())
            except Exception as error:
                raise PluginError(
                    f"plugin {plugin!r} of package {package}: its hook for {kind}s gives no list of classes: "
                    f"{one_line(error)}; fix or uninstall it, or set {DISABLE}={plugin}"
                ) from error
            for operator in offered:
                if not (isinstance(operator, type) and issubclass(operator, base)) or not operator.name:
                    raise PluginError(
                        f"plugin {plugin!r} of package {package} offers {operator!r} as {kind}: "
                        f"it must be a subclass of {base.__name__} with a name"
                    )
                entry = Entry(operator, kind, plugin, package)
                entries.append(entry)
                for name in map(canonical, (operator.name, *operator.aliases)):
                    other = names.setdefault(name, entry)
                    if other is not entry:
                        raise PluginError(
                            f"plugins {other.plugin!r} (package {other.package}) and {plugin!r} (package {package}) "
                            f"both claim the operator name {name!r}: set {DISABLE} to one of them"
                        )
    return Registry(tuple(entries), names, manager)


def _backends(manager: pluggy.PluginManager) -> dict[str, type[Backend]]:
    found: dict[str, type[Backend]] = {}
    for backend in (each for offered in manager.hook.byzflow_backends() for each in offered):
        if found.setdefault(backend.scheme, backend) is not backend:
            raise PluginError(
                f"two plugins claim the backend scheme {backend.scheme!r}: {found[backend.scheme].__module__} and "
                f"{backend.__module__}; set {DISABLE} to one of them"
            )
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value.partition(".")[0]
