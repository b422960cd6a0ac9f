"""A decentralised node whose neighbours are on other machines, or in other processes: each dials, each listens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzflow.actors.keys import Keys
from byzflow.actors.wire import Limits, encode
from byzflow.errors import FederationError, Stopped
from byzflow.federation.contexts import InProcessContext
from byzflow.federation.message import snapshot
from byzflow.gossip.contract import Check, Contract
from byzflow.gossip.effects import NodeId
from byzflow.gossip.tcp_network import TcpNetwork

if TYPE_CHECKING:
    from byzflow.federation.decentralized import DecentralizedNode

LARGEST = 1 << 24  # numbers of one message
ARRAYS = 256  # of one message


class RemoteContext(InProcessContext):
    """Messages travel over TCP, encrypted and authenticated with `keys`, and are plain data, arrays and tensors.

        context = RemoteContext({"b": "tcp://lab:9001"}, listen="tcp://0.0.0.0:9000", accepts=["gradient"])
        node = DecentralizedNode(node_id="a", context=context, topology=graph)

    Of two neighbours one dials; it dials again with growing pauses whenever the link is gone.

    Parameters
    ----------
    dial : where this node reaches others, by id. listen : where others reach it.
    accepts : the types of messages that are taken in; all others are refused and counted. A mapping gives each a check,
        (contract, value) -> what is wrong with it, or None.
    run : a name; who is of another run is refused.
    numbers : of the largest message. Of each neighbour, messages of twice as many bytes may wait at each step of their
        way: to be sent, to be heard, and in the node until somebody takes them; also at most 8, 64 and 1024 in number.
    keys, names, plain : as of a `TcpNetwork`.
    connect_timeout : seconds that `start` waits for the neighbours; who comes later is linked then.
    """

    def __init__(
        self,
        dial: Mapping[NodeId, str] | None = None,
        *,
        listen: str | None = None,
        accepts: Iterable[str] | Mapping[str, Check] = (),
        run: str = "decentralized",
        numbers: int = LARGEST,
        keys: str | Path | Keys | None = None,
        names: Mapping[str, NodeId] | None = None,
        plain: bool = False,
        connect_timeout: float = 5.0,
    ) -> None:
        super().__init__()
        checks = accepts if isinstance(accepts, Mapping) else dict.fromkeys(accepts, _anything)
        self._made: dict[str, Any] = {"accepts": checks, "dial": dial, "listen": listen, "plain": plain, "loose": True}
        self._made |= {"keys": keys, "names": names}
        self._contract = Contract(run, "messages", numbers, arrays=ARRAYS, dims=Limits.dims)
        self.room = 2 * self._contract.limits.body
        self.connect_timeout = connect_timeout
        self._tcp: TcpNetwork | None = None
        self._linked = asyncio.Event()

    async def start(self, node: DecentralizedNode) -> None:
        """Listen, dial, and wait for the neighbours. Raises FederationError without a graph."""
        graph = node.message_router.topology
        if graph is None:
            raise FederationError(
                f"node {node.node_id} needs a topology: over a network its neighbours are known before"
            )
        self._tcp = TcpNetwork(
            node.node_id, graph, self._contract, on_link=lambda other: self._linked.set(), **self._made
        )
        await self._tcp.__aenter__()
        self.network = self._tcp
        await super().start(node)
        wanted = {*graph.neighbours(node.node_id), *graph.in_neighbours(node.node_id)}
        try:
            async with asyncio.timeout(self.connect_timeout):
                while not wanted <= self._tcp.lines.keys():
                    self._linked.clear()
                    await self._linked.wait()
        except TimeoutError:
            return

    @property
    def missing(self) -> tuple[NodeId, ...]:
        """Neighbours that are not linked now."""
        if self._tcp is None:
            return ()
        graph = self._tcp.graph(None)
        return tuple(node for node in graph.neighbours(self._tcp.me) if node not in self._tcp.lines)

    async def send(self, to: NodeId, message_type: str, payload: Any) -> None:
        """See `NodeContext`; the payload is copied. Raises FederationError for a neighbour that is not linked, and
        WireError for a payload that cannot cross, or is too large.
        """
        if self._tcp is None:
            raise Stopped("the node has left")
        if to not in self._tcp.lines and to in self._tcp.graph(None):
            raise FederationError(f"{to} is not linked: it left, or did not come yet")
        payload = snapshot(payload)  # it is sent later, when the sender may have changed it
        frame = self._contract.message(message_type, payload, None, self._tcp.graph(None).version)
        encode(frame, 0, self._contract.limits)  # here its author hears of it; in the link's queue nobody would
        await super().send(to, message_type, payload)

    async def shutdown(self) -> None:
        """Send what waits, and close all links."""
        await super().shutdown()
        if self._tcp is not None:
            tcp, self._tcp = self._tcp, None
            await tcp.flush(1.0)
            await tcp.__aexit__(None, None, None)


def _anything(contract: Contract, value: Any) -> str | None:
    return None
