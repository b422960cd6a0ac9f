"""Robust aggregation and attacks for Flower (Message API, flwr >= 1.28).

    strategy = Robust(FedAvg(), "nnm | trimmed_mean", f=2)      # robust.py: any Flower strategy, made robust
    AttackedGrid(grid, "alie", f=2)                             # attacked_grid.py: omniscient attackers
    LocalGrid({0: app, 1: app})                                 # local_grid.py: ClientApps in this process
    ClientApp(mods=[byzantine(sign_flip, f=2)])                 # mods/: clients that lie
    GossipStrategy("k_regular:4", nodes=8)                      # gossip.py: the server relays, and neighbours mix
    gossip_client(app, "nnm | trimmed_mean", f=1)               # mixing.py: what a client does with its neighbours
    legacy.Robust(flwr.server.strategy.FedAvg(), "median")      # legacy.py: for Flower's older, deprecated API
    plain_errors()                                              # flower_log.py: a user's mistake is one line

robust.py is the strategy. For each round rule.py says which operator aggregates (run_config.py reads it from an app's
run-config, senders.py checks it against the number of clients), replies.py which replies count, partial.py which arrays
clients send back, buffers.py what becomes of those that are no weights, memory.py what a rule remembers of each node,
and loop.py keeps a wrapped strategy's own loop. sent_model.py and npy.py read what a peer sent, within the bounds of
what was sent to it.

audit.py tells who weighed what, standing.py what the rounds so far say of a node, audit_trail.py takes both to the log,
the file (audit_file.py) and TensorBoard; `byzflow audit` shows them (audit_command.py, audit_table.py,
audit_picture.py). compat.py is all that Flower keeps private.

Importing this package imports neither flwr nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byzflow_flower.attacked_grid import AttackedGrid as AttackedGrid
    from byzflow_flower.attacked_grid import first_partitions as first_partitions
    from byzflow_flower.audit import Rejection as Rejection
    from byzflow_flower.audit import RoundAudit as RoundAudit
    from byzflow_flower.flower_log import plain_errors as plain_errors
    from byzflow_flower.gossip import GossipStrategy as GossipStrategy
    from byzflow_flower.local_grid import LocalGrid as LocalGrid
    from byzflow_flower.mixing import gossip_client as gossip_client
    from byzflow_flower.mixing import mix as mix
    from byzflow_flower.mods import byzantine as byzantine
    from byzflow_flower.mods import reveal_partition as reveal_partition
    from byzflow_flower.mods import wants_backdoor as wants_backdoor
    from byzflow_flower.mods import wants_label_flip as wants_label_flip
    from byzflow_flower.robust import Robust as Robust

_HOMES = {
    "AttackedGrid": "attacked_grid",
    "first_partitions": "attacked_grid",
    "Rejection": "audit",
    "RoundAudit": "audit",
    "plain_errors": "flower_log",
    "GossipStrategy": "gossip",
    "gossip_client": "mixing",
    "mix": "mixing",
    "LocalGrid": "local_grid",
    "byzantine": "mods",
    "reveal_partition": "mods",
    "wants_backdoor": "mods",
    "wants_label_flip": "mods",
    "Robust": "robust",
}

__all__ = [*sorted(_HOMES), "mods"]


def __getattr__(name: str) -> Any:
    if name == "mods":
        return import_module("byzflow_flower.mods")
    if name in _HOMES:
        return getattr(import_module(f"byzflow_flower.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
