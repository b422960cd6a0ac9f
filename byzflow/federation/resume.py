"""A federation's whole state between two rounds as one mapping, and a new federation that goes on from it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from byzflow.errors import FederationError
from byzflow.federation import checkpoint
from byzflow.federation.report import RoundReport
from byzflow.gossip.effects import NodeId
from byzflow.gossip.topology import Topology
from byzflow.memory import ByNode

if TYPE_CHECKING:
    from byzflow.federation.federation import Federation

FILE = "federation.safetensors"


class Checkpoints:
    """Where a federation is saved and after how many rounds, and if it goes on from there.

    Raises FederationError for a number below 1, and for a run to go on with from nowhere.
    """

    def __init__(self, folder: str | Path | None, every: int = 1, resume: bool = False) -> None:
        if every < 1:
            raise FederationError(f"checkpoint_every must be >= 1, got {every}")
        if resume and folder is None:
            raise FederationError("resume=True needs the folder: checkpoint=...")
        self.file = None if folder is None else Path(folder) / FILE
        self.every, self.resume = every, resume

    async def go_on(self, federation: Federation) -> None:
        """Put a started federation where the saved one was, if there is one and that is wanted."""
        if self.resume and self.file is not None and checkpoint.exists(self.file):
            await restore(federation, await asyncio.to_thread(checkpoint.load, self.file))

    async def save(self, federation: Federation) -> None:
        """Save it after a round, if it is time."""
        if self.file is not None and not len(federation.history) % self.every:
            await asyncio.to_thread(checkpoint.save, self.file, await collect(federation))


async def collect(federation: Federation) -> dict[str, Any]:
    """Every node's state with the place in its data, every rule's memory, the graph, and what was reported so far."""
    supervisor, done = federation.supervisor, len(federation.history)
    nodes = {}
    for member in federation.members.values():
        version, state = supervisor.kept.get(member.id, (-1, None))
        if version != done and supervisor.done(member, done):  # else it is late, and amid another round
            state = await supervisor.reach(member, supervisor.state_of, done - 1)
        if state is not None and supervisor.done(member, done):
            nodes[json.dumps(member.id)] = state
    server = await supervisor.state_of(federation.server) if federation.server is not None else None
    graph = federation.topology
    return {
        "rounds": done,
        "seed": federation.shared.seed,
        "rule": federation.rule,
        "ids": json.dumps(federation.node_ids),
        "lost": json.dumps([[each.id, each.lost] for each in federation.members.values() if each.lost]),
        "graph": json.dumps(_graph(graph)) if isinstance(graph, Topology) else "",
        "nodes": nodes,
        "server": server or {},
        "memory": {json.dumps(id): packed(state) for id, state in federation.lives.memory().items()},
        "history": json.dumps([_summary(report) for report in federation.history]),
    }


async def restore(federation: Federation, saved: Mapping[str, Any]) -> None:
    """Put a started federation where the saved one was. FederationError if they cannot be the same."""
    for what, mine in (("seed", federation.shared.seed), ("rule", federation.rule)):
        if saved[what] != mine:
            raise FederationError(f"the checkpoint was made with {what} {saved[what]!r}, this federation has {mine!r}")
    ids: list[NodeId] = json.loads(saved["ids"])
    if set(ids) != set(federation.node_ids):
        differ = sorted(map(str, set(ids) ^ set(federation.node_ids)))
        raise FederationError(f"the checkpoint is of other nodes: {', '.join(differ)} are in one of both only")
    if saved["graph"]:
        _take_graph(federation, json.loads(saved["graph"]))
    for id, why in json.loads(saved["lost"]):
        member = federation.members[id]
        member.lost = why
        if member.virtual is not None:
            await member.virtual.aclose()
        federation.network.lose(id)
        await federation.witness.gone(id)
    for member in federation.members.values():
        if (state := saved["nodes"].get(json.dumps(member.id))) is not None:
            await federation.supervisor.give_state(member.node, state)
        else:  # it was late, or has none
            member.away = not member.lost
    if federation.server is not None and saved["server"]:
        await federation.supervisor.give_state(federation.server, saved["server"])
    federation.lives.remember({json.loads(key): unpacked(state) for key, state in saved["memory"].items()})
    federation.history.rounds[:] = [_report(each) for each in json.loads(saved["history"])]


def packed(state: Mapping[str, Any]) -> dict[str, Any]:
    """A rule's memory, what it has by node under the nodes' ids."""
    return {
        name: {"each": {json.dumps(id): _plain(each) for id, each in value.items() if each is not None}}
        if isinstance(value, ByNode)
        else {"all": _plain(value)}
        for name, value in state.items()
        if value is not None
    }


def unpacked(state: Mapping[str, Any]) -> dict[str, Any]:
    """What `packed` was given."""
    return {
        name: ByNode({json.loads(id): each for id, each in value["each"].items()}) if "each" in value else value["all"]
        for name, value in state.items()
    }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _graph(graph: Topology) -> dict[str, Any]:
    return {
        "nodes": graph.nodes,
        "edges": graph.edges,
        "directed": graph.directed,
        "version": graph.version,
        "weights": graph.weights,
    }


def _take_graph(federation: Federation, saved: Mapping[str, Any]) -> None:
    """The graph as it had become; it must have begun as this one."""
    weights = None if saved["weights"] is None else tuple(saved["weights"])
    edges = tuple((a, b) for a, b in saved["edges"])
    graph = Topology(tuple(saved["nodes"]), edges, saved["directed"], saved["version"], weights)
    now = federation.topology
    if graph.version == getattr(now, "version", None) and graph != now:
        raise FederationError(f"the checkpoint is of another graph: {graph}, this federation's is {now}")
    federation.network.topology = graph


def _summary(report: RoundReport) -> dict[str, Any]:
    """What of a round's report is kept: not what every sender's weight was."""
    return {
        "round": report.round,
        "seconds": report.seconds,
        "connected": report.connected,
        "metrics": dict(report.metrics),
        "events": list(report.events.items()),
        "problem": report.problem,
    }


def _report(saved: Mapping[str, Any]) -> RoundReport:
    return RoundReport(
        saved["round"],
        saved["seconds"],
        tuple(saved["connected"]),
        saved["metrics"],
        events=dict(saved["events"]),
        problem=saved["problem"],
    )
