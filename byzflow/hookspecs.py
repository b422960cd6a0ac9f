"""What a plugin may provide: one hook per kind of thing.

A plugin is a module named by an entry point of the group `byzflow`; its hooks are plain functions marked by
`@byzflow.hookimpl`:

    @byzflow.hookimpl
    def byzflow_aggregators():
        return [MyRule]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from byzflow.actors.backend import Backend
    from byzflow.federation.schemas import Schema
    from byzflow.operators import Attack, Operator, PreAggregator

hookspec = pluggy.HookspecMarker("byzflow")
hookimpl = pluggy.HookimplMarker("byzflow")


@hookspec
def byzflow_aggregators() -> list[type[Operator]]:
    """Operator classes that make one row of n."""
    return []


@hookspec
def byzflow_preaggregators() -> list[type[PreAggregator]]:
    """Operator classes that make m rows of n, for the next stage of a chain."""
    return []


@hookspec
def byzflow_attacks() -> list[type[Attack]]:
    """Operator classes that make f Byzantine rows from h honest ones."""
    return []


@hookspec
def byzflow_backends() -> list[type[Backend]]:
    """Backend classes: workers for URLs that begin with their `scheme`."""
    return []


@hookspec
def byzflow_schemas() -> list[Schema]:
    """Schemas: functions that make a federation of a configuration."""
    return []
