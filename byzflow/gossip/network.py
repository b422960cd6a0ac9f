"""How envelopes get from node to node, and the one that needs no bytes: all nodes in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from byzflow.errors import FederationError, NotANeighbour
from byzflow.gossip.effects import NodeId
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.mailbox import AHEAD, Mailbox
from byzflow.gossip.topology import Topology
from byzflow.gossip.varying import Varying


@dataclass
class Traffic:
    """What has passed."""

    sent: int = 0
    delivered: int = 0
    refused: int = 0
    serialised: int = 0
    """How often a value was made ready to travel: once a send, however many receive it."""


class Network(Protocol):
    """Carries what one node sends to the mailboxes of others."""

    traffic: Traffic

    async def send(self, sender: NodeId, to: Sequence[NodeId], type: str, value: Any, round: int | None) -> None:
        """Raises NotANeighbour for a receiver that the graph does not join to the sender."""

    def mailbox(self, node: NodeId) -> Mailbox:
        """The mailbox of a node that lives here."""


class LocalNetwork:
    """All nodes in one process: an envelope holds the value itself, which nobody may change.

    The graph is a value: setting `topology` changes it for both ends at once, and what was sent before is judged by
    the graph of its receiver's moment. The supervisor is no node: what it sends reaches everyone.
    """

    def __init__(self, topology: Topology | Varying, ahead: int = AHEAD) -> None:
        """`ahead`: rounds that a message may be before its receiver's own."""
        self._topology, self.ahead = topology, ahead
        self.traffic = Traffic()
        self._mailboxes: dict[NodeId, Mailbox] = {}
        self._lost: set[NodeId] = set()
        self._heard: dict[tuple[NodeId, int], frozenset[NodeId]] = {}

    @property
    def topology(self) -> Topology | Varying:
        """Who may send to whom."""
        return self._topology

    @topology.setter
    def topology(self, graph: Topology | Varying) -> None:
        self._topology = graph
        self._heard.clear()  # of another graph, which may have had the same version

    def mailbox(self, node: NodeId) -> Mailbox:
        """Made when it is first asked for."""
        if node not in self._mailboxes:
            mailbox = self._mailboxes[node] = Mailbox(lambda envelope: self._joined(envelope, node), self.ahead)
            for lost in self._lost:
                mailbox.lose(lost)
        return self._mailboxes[node]

    async def send(self, sender: NodeId, to: Sequence[NodeId], type: str, value: Any, round: int | None) -> None:
        """One envelope for all."""
        graph = self.graph(round)
        self.check(graph, sender, to)
        envelope = Envelope(type, sender, value, round, graph.version)
        self.traffic.serialised += 1
        for receiver in to:
            self.deliver(receiver, envelope)

    async def room(self, sender: NodeId, receiver: NodeId, timeout: float | None = None) -> None:
        """Until the receiver has room for a message outside of rounds. Raises MailboxFull, and Stopped."""
        await self.mailbox(receiver).room(sender, timeout)

    def graph(self, round: int | None) -> Topology:
        """Who may send to whom in a round."""
        return self.topology.at(round or 0) if isinstance(self.topology, Varying) else self.topology

    @staticmethod
    def check(graph: Topology, sender: NodeId, to: Sequence[NodeId]) -> None:
        """Raises NotANeighbour."""
        known = dict.fromkeys(graph.neighbours(sender))
        if strangers := [str(each) for each in to if each not in known]:
            raise NotANeighbour(
                f"{sender} may not send to {', '.join(strangers)}; "
                f"its neighbours are {', '.join(map(str, known)) or 'none'}"
            )

    def deliver(self, receiver: NodeId, envelope: Envelope) -> bool:
        """Put it into the mailbox, which checks again: a Byzantine sender skips its own check. True if it was kept."""
        self.traffic.sent += 1
        kept = self.mailbox(receiver).put(envelope)
        if kept:
            self.traffic.delivered += 1
        else:
            self.traffic.refused += 1
        return kept

    def supervise(self, type: str, value: Any, to: Sequence[NodeId] | None = None) -> None:
        """A message of the supervisor's, to all nodes or some: the control plane knows no edges."""
        for node in self.topology.nodes if to is None else to:
            if node not in self.topology.nodes:
                raise FederationError(f"no node {node!r}; there are {', '.join(map(str, self.topology.nodes))}")
            self.deliver(node, Envelope(type, SUPERVISOR, value))

    def down(self, node: NodeId) -> None:
        """Nobody needs to wait for this node."""
        for mailbox in self._mailboxes.values():
            mailbox.down(node)

    def lose(self, node: NodeId) -> None:
        """The node takes no part any more: nobody waits for it, and no quorum counts it."""
        self._lost.add(node)
        for mailbox in self._mailboxes.values():
            mailbox.lose(node)

    def up(self, node: NodeId) -> None:
        """The node is there again."""
        self._lost.discard(node)
        for mailbox in self._mailboxes.values():
            mailbox.up(node)

    def stop(self) -> None:
        """End what waits."""
        for mailbox in self._mailboxes.values():
            mailbox.stop()

    def _joined(self, envelope: Envelope, receiver: NodeId) -> bool:
        return envelope.sender == SUPERVISOR or envelope.sender in self._hears(receiver, envelope.round)

    def _hears(self, receiver: NodeId, round: int | None) -> frozenset[NodeId]:
        graph = self.graph(round)
        key = (receiver, graph.version)
        if key not in self._heard:
            if len(self._heard) > 4 * len(graph):
                self._heard.clear()  # of graphs that are gone
            self._heard[key] = frozenset(graph.in_neighbours(receiver))
        return self._heard[key]


SUPERVISOR = "supervisor"
"""The id under which the owner of a run speaks; no node may have it."""
