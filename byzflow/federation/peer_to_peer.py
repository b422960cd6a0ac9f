"""Peer to peer: nodes that mix their models with their neighbours', in two lines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from byzflow.custom import Stage, compose
from byzflow.errors import FederationError
from byzflow.federation.federation import Federation
from byzflow.federation.parameter_server import Nodes, close, joined
from byzflow.federation.report import History, RoundReport
from byzflow.gossip.performer import ask
from byzflow.gossip.topology import Source


class PeerToPeer:
    """Rounds of gossip: a half step on the own data, an exchange with the neighbours, the rule's model to go on from.

        p2p = PeerToPeer(honest, byzantine, "ring", aggregator="median", lr=0.1)
        await p2p.bootstrap()
        for _ in range(100):
            await p2p.round()
        await p2p.shutdown()

    A face of `Federation`, which does the work: no node is a centre, and none waits for more than its neighbours.

    Parameters
    ----------
    honest_nodes, byzantine_nodes : objects or actors, in lists (ids 0, 1, ... through both) or by id.
    topology : who hears whom, anything that `byzflow.gossip.topology` reads.
    aggregator, pre_aggregator, f : the rule of each node, as for `ParameterServer`.
    lr : step size of the half steps; the nodes' own if None.
    settings : as of a `Federation`.
    """

    def __init__(
        self,
        honest_nodes: Nodes,
        byzantine_nodes: Nodes | None = None,
        topology: Source = "full",
        aggregator: Stage = "mean",
        pre_aggregator: Stage | Sequence[Stage] | None = None,
        *,
        f: int | None = None,
        lr: float | None = None,
        **settings: Any,
    ) -> None:
        if topology == "star":
            raise FederationError("a star has a centre: take a ParameterServer")
        nodes, liars = joined(honest_nodes, byzantine_nodes)
        self.lr = lr
        rule = compose(pre_aggregator, aggregator, f)
        f = rule.declared if f is None else f
        self.federation = Federation(nodes, topology, rule, f, byzantine=liars, **settings)

    @property
    def history(self) -> History:
        """The reports of all rounds."""
        return self.federation.history

    async def bootstrap(self) -> None:
        """Tell the nodes their step size, and let them begin; needless before `round`."""
        if self.federation.running:
            return
        if self.lr is not None:
            honest = [member.node for member in self.federation.members.values() if not member.byzantine]
            await asyncio.gather(*(ask(node, "set_lr", self.lr) for node in honest))
        await self.federation.start()

    async def round(self) -> RoundReport:
        """One round of all nodes."""
        await self.bootstrap()
        return await self.federation.round()

    async def shutdown(self) -> None:
        """End the run, the nodes' pools, and the workers of nodes that are actors. May be called twice."""
        await self.federation.stop()
        await close(member.node for member in self.federation.members.values())

    async def __aenter__(self) -> Self:
        await self.bootstrap()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.shutdown()
