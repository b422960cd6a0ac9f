"""Who comes and goes between rounds, and what becomes of the graph then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from byzflow.errors import FederationError
from byzflow.federation.member import Member
from byzflow.federation.rewire import joined, without
from byzflow.gossip.defence import Defence
from byzflow.gossip.effects import Heard, NodeId
from byzflow.gossip.performer import ask, can
from byzflow.gossip.topology import Topology
from byzflow.gossip.varying import Varying

if TYPE_CHECKING:
    from byzflow.federation.federation import Federation

OWN = ("epoch", "position", "mean")
"""What of a node's state comes of its own data: it is never taken from another node."""


class Churn:
    """Changes what a federation is made of, at the end of a round: within one, nodes and edges stay as they are."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._next: Topology | Varying | None = None

    def change(self, graph: Topology | Varying) -> None:
        """The graph from the next round on. FederationError if it has other nodes."""
        if set(graph.nodes) != set(self._federation.network.topology.nodes):
            raise FederationError("another graph must have the same nodes; `add` and `remove` change these")
        self._next = graph

    async def settle(self) -> None:
        """Between two rounds: the graph that was asked for, without who is lost, and with who comes in."""
        self.rewire()
        federation = self._federation
        for member in [each for each in federation.members.values() if each.away and not each.lost]:
            await self._catch_up(member)
            await self._enter(member)

    def rewire(self) -> None:
        """Take the graph that was asked for, and leave out who is lost."""
        federation, graph = self._federation, self._next or self._federation.network.topology
        self._next = None
        gone = [member.id for member in federation.members.values() if member.lost and member.id in graph.nodes]
        if isinstance(graph, Topology):
            honest = {each.id for each in federation.members.values() if not (each.lost or each.byzantine)}
            for id in gone:
                if len(graph) > 2:
                    graph = without(graph, id, honest | ({federation.centre} if federation.centre else set()))
        self._take(graph)

    async def add(self, member: Member, neighbours: Sequence[NodeId] | None) -> None:
        """A member more."""
        federation, graph = self._federation, self._federation.network.topology
        if member.id in graph.nodes or member.id in federation.members:
            raise FederationError(f"there is a node {member.id!r} already")
        if isinstance(graph, Varying):
            raise FederationError("a graph that is a function of the round has fixed nodes: set a fixed one first")
        self._take(joined(graph, member.id, neighbours if federation.centre is None else [federation.centre]))
        federation.members[member.id] = member
        if member.byzantine:
            federation.lives.liars.append(member.id)
        if member.trains():
            federation.shared.contributors |= {member.id}
        if federation.lives.tasks:
            try:
                await federation.supervisor.build([member])
                await self._catch_up(member)
            except BaseException:
                await self.remove(member.id)
                raise
            await self._enter(member)
        federation.supervisor.events[member.id] = "added"

    async def remove(self, id: NodeId) -> None:
        """A member less. FederationError if it is unknown, or if too few would be left."""
        federation, graph = self._federation, self._federation.network.topology
        if id not in federation.members:
            raise FederationError(f"no node {id!r}; there are {', '.join(map(str, federation.members))}")
        member = federation.members[id]
        left = sum(1 for each in federation.members.values() if each.here and each.trains() and each.id != id)
        if left < (least := max(federation.min_nodes, 1 if federation.centre else 2)):
            raise FederationError(f"without {id} {left} training nodes are left, of at least {least}")
        if isinstance(graph, Varying):
            raise FederationError("a graph that is a function of the round has fixed nodes: set a fixed one first")
        member.lost = "removed"
        self.rewire()
        del federation.members[id]
        federation.shared.contributors -= {id}
        if id in federation.lives.liars:
            federation.lives.liars.remove(id)
        federation.network.lose(id)
        await federation.witness.gone(id)
        if (task := federation.lives.tasks.pop(id, None)) is not None:
            task.cancel()
        await federation.pace.leave([id])
        await federation.supervisor.forget(member)
        federation.supervisor.events[id] = "removed"

    # ------------------------------------------------------------------ the inside

    def _take(self, graph: Topology | Varying) -> None:
        federation, before = self._federation, self._federation.network.topology
        if graph is before:
            return
        if isinstance(graph, Topology) and isinstance(before, Topology) and graph.version <= before.version:
            graph = replace(graph, version=before.version + 1)
        federation.lives.mixing.clear()
        federation.network.topology = graph

    async def _enter(self, member: Member) -> None:
        """Take part from the next round on."""
        member.away = False
        self._federation.network.up(member.id)
        await self._federation.witness.back(member.id)
        self._federation.lives.begin(member, len(self._federation.history))

    async def _catch_up(self, member: Member) -> None:
        """Give a node the model of most others in a star, else what the rule makes of its neighbours' models.

        A rule that starts from the node's own row has none to start from: then it is their median.
        """
        if not len(self._federation.history) or member.byzantine:
            return
        if self._federation.centre is not None:
            await self._follow_most(member)
        else:
            await self._ask_neighbours(member)

    async def _follow_most(self, member: Member) -> None:
        federation, supervisor = self._federation, self._federation.supervisor
        done = len(federation.history) - 1
        found = await federation.observer.digests(done)
        digest, holders = max(found.items(), key=lambda each: len(each[1]), default=("", ()))
        for donor in (federation.members[id] for id in holders if id != member.id):
            state = await supervisor.reach(donor, supervisor.state_of, done)
            own = await supervisor.state_of(member.node)
            if state is None or own is None or not own.keys() - set(OWN) <= state.keys():
                continue
            kept: Mapping[str, Any] = supervisor.kept.get(member.id, (0, own))[1]
            mine = {name: kept[name] for name in OWN if name in kept}
            await supervisor.give_state(
                member.node, {name: each for name, each in state.items() if name not in OWN} | mine
            )
            limit = supervisor.policy.call_timeout
            if not can(member.node, "digest") or await ask(member.node, "digest", limit=limit) == digest:
                return  # else the donor has told the digest of most, and given another model
            await supervisor.give_state(member.node, own)

    async def _ask_neighbours(self, member: Member) -> None:
        federation, supervisor = self._federation, self._federation.supervisor
        done = len(federation.history)

        async def model(node: Any) -> Any:
            return await ask(node, "get_parameters", limit=supervisor.policy.call_timeout)

        graph = federation.shared.at(done)
        around = [federation.members[id] for id in graph.in_neighbours(member.id)]
        honest = [each for each in around if callable(getattr(each.node, "get_parameters", None)) and each.here]
        models = {each.id: await supervisor.reach(each, model, done - 1) for each in honest}
        heard = Heard({id: each for id, each in models.items() if each is not None})
        defence = Defence(federation.defence, federation.f)
        verdict = (Defence("median", federation.shared.f) if defence.needs_own else defence).aggregate(heard)
        if verdict.value is not None and callable(getattr(member.node, "set_parameters", None)):
            await ask(member.node, "set_parameters", verdict.value, limit=supervisor.policy.call_timeout)
