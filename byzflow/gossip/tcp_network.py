"""A network for one node of a federation whose nodes are processes, on one host or on many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from byzflow.actors.hello import Hello
from byzflow.actors.hub import HANDSHAKE, Hub, OnTrouble
from byzflow.actors.keys import Keys
from byzflow.actors.link import Frame
from byzflow.actors.socket_link import SocketLink
from byzflow.errors import ActorError, FederationError, LinkClosed, MailboxFull, Stopped, WireError, legible
from byzflow.gossip.contract import BUSY, REGISTERED, Check, Contract
from byzflow.gossip.effects import NodeId
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.mailbox import Mailbox
from byzflow.gossip.network import LocalNetwork, Traffic
from byzflow.gossip.topology import Topology
from byzflow.gossip.varying import Varying
from byzflow.graph.messages import nbytes

OUTBOX = 8  # messages that may wait for one peer; more means that it does not take them
LAST = 3  # messages that are sent again
FAULTS = 100  # messages of one link that may be refused for what they are
Handler = Callable[[Envelope], None]


@dataclass
class Line:
    """The link to one peer, and what waits to be sent on it."""

    link: SocketLink
    waiting: asyncio.Queue[tuple[Frame, int]] = field(default_factory=lambda: asyncio.Queue(OUTBOX))
    held: int = 0  # bytes of what waits
    faults: int = 0

    def push(self, frame: Frame) -> bool:
        """Send it soon. A peer that does not take what it is sent loses its link, and keeps nobody else waiting."""
        size = nbytes(frame.body)
        try:
            self.waiting.put_nowait((frame, size))
            self.held += size
        except asyncio.QueueFull:
            self.link.refuse("it does not take what it is sent")
        return self.link.open

    async def write(self) -> None:
        """Send what waits, for ever. Raises LinkClosed."""
        while True:
            frame, size = await self.waiting.get()
            await self.link.send(frame)
            self.held -= size
            self.waiting.task_done()


class TcpNetwork:
    """Carries the messages of one node over links of its own; use it with `async with`.

    A message is delivered if it is of this run and model, of a type that this node accepts, from a neighbour in the
    current graph, of a round inside the window, and its value is what its type says. All else is refused and counted,
    under the node in `mailbox(me).refused` and under the connection in `refused`.

    With keys a sender is who its certificate says; `names` gives the id of each. Without (on one host, or `plain`)
    it is who it claims to be. Either way an id has one link at a time: who registers it on another one is refused
    until the first has ended.

    Parameters
    ----------
    me : this node. graph : who may send to whom. contract : see `Contract`.
    accepts : type -> check of its value.
    handlers : type -> what is called with such a message, instead of the mailbox.
    listen, dial : where others reach this node, and where it reaches others, by id; tcp://host:port.
    on_link, on_end : told of each node that is linked, and of each that is no more.
    on_trouble : told of each attempt to dial that failed, see `Hub.keep`.
    give_up : if being refused for good by a peer that is dialled ends `run`, by a FederationError.
    resend : send the last messages of rounds again to who comes (back), for nodes that have no centre to ask.
    loose : if messages are outside of rounds, and of no round. Up to 64 of each sender wait until somebody takes them,
        and `most` bytes, besides one message; as many bytes wait to be sent to it.
    """

    def __init__(
        self,
        me: NodeId,
        graph: Topology | Varying,
        contract: Contract,
        accepts: Mapping[str, Check],
        handlers: Mapping[str, Handler] | None = None,
        *,
        listen: str | None = None,
        dial: Mapping[NodeId, str] | None = None,
        names: Mapping[str, NodeId] | None = None,
        keys: str | Path | Keys | None = None,
        plain: bool = False,
        on_link: Callable[[NodeId], None] = lambda node: None,
        on_end: Callable[[NodeId, str], None] = lambda node, why: None,
        on_trouble: OnTrouble | None = None,
        give_up: bool = False,
        resend: bool = False,
        loose: bool = False,
    ) -> None:
        self.me, self.topology, self.contract = me, graph, contract
        self.accepts, self.handlers = dict(accepts), dict(handlers or {})
        self.traffic = Traffic()
        self.rounds: dict[NodeId, int] = {}
        """The latest round that each neighbour spoke of."""
        self.lines: dict[NodeId, Line] = {}
        self._dial, self._names = dict(dial or {}), dict(names or {})
        self._on_link, self._on_end, self._on_trouble = on_link, on_end, on_trouble
        self._give_up, self._resend, self._loose = give_up, resend, loose
        self._last: deque[tuple[frozenset[NodeId], Frame]] = deque(maxlen=LAST)
        self._dialling: list[asyncio.Task[None]] = []
        self.most = 2 * contract.limits.body
        self._mailbox = Mailbox(
            lambda envelope: envelope.sender in self.graph(envelope.round).in_neighbours(me), most=self.most
        )
        self.hub = Hub(
            listen,
            None if listen is None else self._serve,
            keys=keys,
            plain=plain,
            purpose=f"federation:{contract.run}",
            connections=2 * len(graph.nodes) + 16,
            each=2,
            limits=contract.limits,
        )
        for node in graph.nodes:
            if node != me:
                self._mailbox.down(node)  # until it comes

    @property
    def refused(self) -> dict[str, dict[str, int]]:
        """Connection -> reason -> how often something of it was refused."""
        return self.hub.refused

    @property
    def linked(self) -> tuple[NodeId, ...]:
        """Who is linked now, in the order of the nodes."""
        return tuple(node for node in self.topology.nodes if node in self.lines)

    async def __aenter__(self) -> Self:
        try:
            await self.hub.__aenter__()
        except OSError as error:
            raise FederationError(
                f"cannot listen at {self.hub.url}: {error.strerror or error}; "
                "is the port in use, or the address not one of this host?"
            ) from None
        for node, url in self._dial.items():
            self._dialling.append(asyncio.create_task(self._keep(node, url)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for task in self._dialling:
            task.cancel()
        await self.hub.__aexit__(kind, error, at)
        await asyncio.gather(*self._dialling, return_exceptions=True)

    async def run(self) -> None:
        """For ever, unless it was refused for good: see `give_up`."""
        await asyncio.gather(*self._dialling)
        await asyncio.Event().wait()

    def mailbox(self, node: NodeId) -> Mailbox:
        """Of the one node that lives here."""
        if node != self.me:
            raise FederationError(f"{node!r} does not live here, {self.me!r} does")
        return self._mailbox

    def graph(self, round: int | None) -> Topology:
        """Who may send to whom in a round."""
        return self.topology.at(round or 0) if isinstance(self.topology, Varying) else self.topology

    async def send(self, sender: NodeId, to: Sequence[NodeId], type: str, value: Any, round: int | None) -> None:
        """Hand it to the links of those who are there, without waiting for any of them; others miss it."""
        self.post(to, type, value, round)

    def post(self, to: Sequence[NodeId], type: str, value: Any, round: int | None = None) -> None:
        """The same for who is not in a coroutine. Raises NotANeighbour."""
        graph = self.graph(round)
        LocalNetwork.check(graph, self.me, to)
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
        frame = self.contract.message(type, value, round, graph.version)
        self.traffic.serialised += 1
        if self._resend and round is not None:
            self._last.append((frozenset(to), frame))
        for receiver in to:
            self.traffic.sent += 1
            if receiver in self.lines:
                self.lines[receiver].push(frame)

    async def room(self, sender: NodeId, receiver: NodeId, timeout: float | None = None) -> None:
        """Until the link takes one more message. Raises MailboxFull after `timeout` seconds."""
        line = self.lines.get(receiver)
        try:
            async with asyncio.timeout(timeout):
                while line is not None and line.link.open and (line.waiting.full() or line.held >= self.most):
                    await line.waiting.join()
        except TimeoutError:
            raise MailboxFull(f"{receiver} took nothing within {timeout:g} s") from None

    async def flush(self, seconds: float) -> None:
        """Until all that waits was sent, or the time is over."""
        joins = [asyncio.ensure_future(line.waiting.join()) for line in self.lines.values()]
        if joins:
            _, late = await asyncio.wait(joins, timeout=seconds)
            for each in late:
                each.cancel()

    def end(self, node: NodeId, why: str) -> None:
        """End the link of a node, which may come again."""
        if node in self.lines:
            self.lines[node].link.refuse(why)

    # ------------------------------------------------------------------ links

    async def _serve(self, link: SocketLink, hello: Hello) -> None:
        """A link that came in: let its node register, and hear it. What is raised is told to it and counted."""
        async with asyncio.timeout(HANDSHAKE):
            node = self.contract.registered(await link.recv())
        if self.hub.keys is not None and self._names.get(link.peer) != node:
            raise ActorError(f"the key of {link.peer} is not that of node {node!r:.40}")
        if node == self.me or node not in self.topology.nodes:
            known = ", ".join(str(each) for each in self.topology.nodes if each != self.me)
            raise ActorError(f"no node {node!r:.40} in this run's file; there are {known}")
        if node in self.lines:
            if self.lines[node].link.open:
                reason = f"{node} is registered already, over another connection that is alive"
                self.hub.count(link.peer, reason)
                await link.send(Frame(BUSY, 1, reason))
                await asyncio.sleep(0.05)  # for it to be read before the connection ends
                return
            del self.lines[node]
        await self._converse(node, link, Frame(REGISTERED, 1, self.me))

    async def _keep(self, node: NodeId, url: str) -> None:
        """Dial a node for as long as this network lasts."""

        async def serve(link: SocketLink) -> None:
            if self.hub.keys is not None and self._names.get(link.peer) != node:
                raise LinkClosed(f"{link.peer} answers there, who is not node {node}")
            await link.send(self.contract.registration(self.me))
            async with asyncio.timeout(HANDSHAKE):
                answer = await link.recv()
            match answer:
                case Frame(kind="registered", number=1):
                    await self._converse(node, link)
                case Frame(kind="refused", body=str(reason)) if self._give_up:
                    raise FederationError(f"{node} refuses node {self.me}: {legible(reason, 500)}")
                case Frame(kind="refused" | "busy", body=str(reason)):
                    raise LinkClosed(f"refused: {legible(reason, 500)}")
                case _:
                    raise LinkClosed(f"{node} answers what is no answer")

        async def patient(link: SocketLink) -> None:
            try:
                await serve(link)
            except TimeoutError:
                raise LinkClosed(f"{node} does not answer") from None

        await self.hub.keep(url, patient, str(self.me), on_trouble=self._on_trouble)

    async def _converse(self, node: NodeId, link: SocketLink, first: Frame | None = None) -> None:
        """Hear a node that is linked, until it is no more."""
        line = self.lines[node] = Line(link)
        if first is not None:
            line.push(first)
        why = "its link ended"
        writing = asyncio.create_task(line.write())
        try:
            self._mailbox.up(node)
            self._on_link(node)
            for receivers, frame in self._last:
                if node in receivers:
                    line.push(frame)
            while True:
                self._hear(node, line, await link.recv())
                with suppress(Stopped):  # the links outlive the node's program
                    await self._mailbox.room(node)  # what is not taken waits at its sender
        except LinkClosed as error:
            why = str(error)
            raise
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            if self.lines.get(node) is line:
                del self.lines[node]
                self._mailbox.down(node)
                self._on_end(node, why)

    # ------------------------------------------------------------------ messages

    def _hear(self, node: NodeId, line: Line, frame: Frame) -> None:
        """Check a message, and hand it on or refuse it."""
        type, round = "", None
        try:
            type, value, round, version = self.contract.opened(frame)
            if type not in self.accepts:
                raise WireError("of a type that is not accepted here")
            if (round is None) != self._loose:
                raise WireError("of no round" if round is None else "of a round, and there are none here")
            near = round is None or self._mailbox.near(round)
            graph = self.graph(round if near else self._mailbox.round)  # no peer chooses which graphs are drawn
            if node not in graph.in_neighbours(self.me):
                raise WireError("not a neighbour")
            if near and version != graph.version:
                raise WireError("by another version of the graph")
            if fault := self._fault(type, value):
                raise WireError(f"{type}: {fault}")
        except WireError as fault:
            self._refuse(node, line, str(fault))
            if type in self.accepts and type not in self.handlers and round is not None:
                self._mailbox.put(Envelope(type, node, None, round))  # it has spoken: nobody needs to wait for it
            return
        if round is not None:
            self.rounds[node] = max(round, self.rounds.get(node, 0))
        envelope = Envelope(type, node, value, round, version)
        if type in self.handlers:
            self.handlers[type](envelope)
        elif not self._mailbox.put(envelope):
            self.traffic.refused += 1
            return
        self.traffic.delivered += 1

    def _fault(self, type: str, value: Any) -> str | None:
        """What is wrong with a value; a check that it is too much for must not end the dialling of its sender."""
        try:
            return self.accepts[type](self.contract, value)
        except Exception as error:
            return f"its check raised {error.__class__.__name__}"

    def _refuse(self, node: NodeId, line: Line, reason: str) -> None:
        self.traffic.refused += 1
        line.faults += 1
        self._mailbox.refuse(node, reason)
        self.hub.count(line.link.peer, reason)
        if line.faults >= FAULTS:
            line.link.refuse(f"{node} sent {FAULTS} messages that had to be refused")
