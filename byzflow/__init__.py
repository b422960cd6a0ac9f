"""byzflow: training that stays right when some participants lie, break or are slow.

    api          aggregate, attack
    errors       everything raised on purpose
    hookspecs    what a plugin may provide
    registry     loads plugins, looks names up
    spec         reads "arc | nnm | trimmed_mean(f=2)"
    parameters   what the fields of an operator declare
    operators    the kinds of operator; Chain
    custom       operators of your own, as functions of the rows
    ranks        what column rules are made of
    rows, layout the n vectors, wherever they are; what one of them looks like
    gram         the n x n world
    memory       what a rule remembers from round to round
    attendance   what of a rule is left for those who came
    robustness   what is proven of a rule: theory
    worst_case   looks for rows that a rule does badly on
    ledger       what nodes aggregated, written down so that anybody can compute it again
    catalogue    what is installed, as plain data
    health       what `byzflow doctor` looks at
    testing      the contract every plugin must pass
    engine/      the two passes over the rows, and the report
    graph/       computation graphs and what runs them
    actors/      workers on threads, processes, other machines
    gossip/      who hears whom, what nodes say, and the programs that they run
    federation/  nodes that learn together, around a centre or without
    experiments/ small studies that anybody can repeat
    cli/         one command a file

Rows may be one (n, d) tensor or array, or a list of n tensors, arrays or mappings name -> array, in any float
dtype on any device; answers keep kind, dtype and device, and rows are never modified.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from byzflow.api import aggregate, attack
    from byzflow.engine.report import Aggregation
    from byzflow.errors import ByzflowError
    from byzflow.hookspecs import hookimpl
    from byzflow.operators import Attack, Chain, CoordinateWise, Mixing, Operator, PreAggregator, RowsOperator
    from byzflow.registry import installed
    from byzflow.robustness import theory
    from byzflow.rows import Streamed
    from byzflow.spec import parse
    from byzflow.worst_case import kappa_search

__all__ = [
    "Aggregation",
    "Attack",
    "ByzflowError",
    "Chain",
    "CoordinateWise",
    "Mixing",
    "Operator",
    "PreAggregator",
    "RowsOperator",
    "Streamed",
    "aggregate",
    "attack",
    "hookimpl",
    "installed",
    "kappa_search",
    "parse",
    "theory",
]

# Names are imported when they are first used: `byzflow --help` must not wait for torch.
_HOMES = {
    "api": ("aggregate", "attack"),
    "engine.report": ("Aggregation",),
    "errors": ("ByzflowError",),
    "hookspecs": ("hookimpl",),
    "worst_case": ("kappa_search",),
    "operators": ("Attack", "Chain", "CoordinateWise", "Mixing", "Operator", "PreAggregator", "RowsOperator"),
    "registry": ("installed",),
    "rows": ("Streamed",),
    "spec": ("parse",),
    "robustness": ("theory",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"byzflow.{home}"), name)
    raise AttributeError(f"module 'byzflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
