"""A parameter server: a centre that aggregates what its workers send, in two lines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from torch import Tensor

from byzflow.actors import ActorRef
from byzflow.custom import Stage, compose
from byzflow.errors import FederationError
from byzflow.federation.federation import Federation
from byzflow.federation.report import History, RoundReport
from byzflow.gossip.effects import NodeId
from byzflow.gossip.performer import ask
from byzflow.graph.subtask import Pool

Nodes = Sequence[Any] | Mapping[NodeId, Any]


class ParameterServer:
    """Rounds of synchronous training around a centre. A face of `Federation`, which does the work.

        server = ParameterServer(honest, byzantine, aggregator="nnm | trimmed_mean", f=2)
        for _ in range(100):
            gradient = await server.round()
        await server.shutdown()

    Rows are ordered by node, the honest ones first, whoever finishes first. A node that fails, or sends what does not
    fit, costs the round its own row; a silent one until the deadline.

    Parameters
    ----------
    honest_nodes, byzantine_nodes : objects or actors, in lists (ids 0, 1, ... through both) or by id.
    aggregator : the rule, a spec, one of byzflow's operators or one of your own (`byzflow.custom`).
    pre_aggregator : steps in front of it, one or a list.
    update_byzantines : whether Byzantine nodes are given the aggregate too.
    f : fills each f that is left open in the specs, and how many workers a round can do without; the rule's if None.
    actor_pool : on whose workers the rule is computed; never needed for speed on one host.
    model : the centre's own model, with `apply_server_gradient`; it begins equal to the nodes'.
    begin : "check" that the honest nodes begin with equal models, or "copy" the first one's to the others.
    settings : `quorum`, `deadline`, `fraction`, `weights`, `seed`, `evaluate_every`, `sinks` and all else that a
        `Federation` takes.

    Raises
    ------
    FederationError, SpecError, NotEnoughSenders : settings that cannot work.
    """

    def __init__(
        self,
        honest_nodes: Nodes,
        byzantine_nodes: Nodes = (),
        aggregator: Stage = "mean",
        pre_aggregator: Stage | Sequence[Stage] | None = None,
        update_byzantines: bool = False,
        *,
        f: int | None = None,
        actor_pool: Pool | None = None,
        model: Any = None,
        begin: Literal["check", "copy"] = "check",
        **settings: Any,
    ) -> None:
        nodes, liars = joined(honest_nodes, byzantine_nodes)
        self._centre = _Centre(model)
        if begin not in ("check", "copy"):
            raise FederationError(f"begin is 'check' or 'copy', got {begin!r}")
        self._begin, self._checked = begin, False
        rule = compose(pre_aggregator, aggregator, f)
        f = rule.declared if f is None else f
        self.federation = Federation(
            nodes,
            "star",
            rule,
            f,
            byzantine=liars,
            update_byzantines=update_byzantines,
            actor_pool=actor_pool,
            server=self._centre,
            **settings,
        )

    @property
    def history(self) -> History:
        """The reports of all rounds."""
        return self.federation.history

    @property
    def report(self) -> RoundReport:
        """Of the last round."""
        return self.history[-1]

    async def round(self) -> Tensor:
        """One round: (d,), the aggregate that all nodes stepped by, in the dtype and on the device of the rows.

        Raises FederationError if the nodes do not begin with equal models, and if no step could be taken: the models
        are then as before, and another round may be tried.
        """
        if not self._checked:
            await self._start()
            self._checked = True
        self._centre.step = None
        report = await self.federation.round()
        if self._centre.step is None:
            raise FederationError(f"round {report.round + 1} took no step: {report.problem or 'nobody sent anything'}")
        return self._centre.step

    async def shutdown(self) -> None:
        """End the run, the nodes' pools, and the workers of nodes that are actors. May be called twice."""
        await self.federation.stop()
        await close(member.node for member in self.federation.members.values())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def _start(self) -> None:
        await self.federation.start()
        try:
            if self._begin == "copy":
                await self._copy_first()
            await self._check_equal()
        except BaseException:
            await self.federation.stop()
            raise

    async def _copy_first(self) -> None:
        nodes = [member.node for member in self.federation.members.values() if not member.byzantine]
        vector = await ask(nodes[0], "get_parameters")
        others = [*nodes[1:], *([] if self._centre.model is None else [self._centre.model])]
        await asyncio.gather(*(ask(node, "set_parameters", vector) for node in others))

    async def _check_equal(self) -> None:
        """All honest nodes that can tell, and the centre's model, begin with the same numbers."""
        members = [member for member in self.federation.members.values() if not member.byzantine]
        holders = {str(member.id): member.node for member in members} | {"the server's model": self._centre.model}
        asked = [name for name, node in holders.items() if callable(getattr(node, "digest", None))]
        found = await asyncio.gather(*(ask(holders[name], "digest") for name in asked))
        groups: dict[str, list[str]] = {}
        for name, digest in zip(asked, found, strict=True):
            if digest:
                groups.setdefault(digest, []).append(name)
        if len(groups) > 1:
            told = " | ".join(", ".join(names) for names in groups.values())
            raise FederationError(
                f"the nodes begin with {len(groups)} different models ({told}), and steps would keep them different: "
                "make all from one seed, load one state into all, or say begin='copy'"
            )


class _Centre:
    """What the server has: the last aggregate, and a model that steps along, if there is one."""

    def __init__(self, model: Any) -> None:
        if model is not None and not callable(getattr(model, "apply_server_gradient", None)):
            raise FederationError(
                f"the server's model needs apply_server_gradient(gradient), {type(model).__name__} has none: "
                "wrap a module in a LearnerNode"
            )
        self.model = model
        self.step: Tensor | None = None

    def apply_server_gradient(self, step: Tensor) -> Any:
        self.step = step
        return None if self.model is None else self.model.apply_server_gradient(step)

    def apply_server_update(self, step: Tensor) -> Any:
        self.step = step
        return None if self.model is None else self.model.apply_server_update(step)


def joined(honest: Nodes, byzantine: Nodes | None) -> tuple[dict[NodeId, Any], tuple[NodeId, ...]]:
    """All nodes by id, the honest ones first, and the ids of the Byzantine ones. Raises FederationError."""
    good: dict[NodeId, Any] = dict(honest if isinstance(honest, Mapping) else enumerate(honest))
    liars = byzantine or ()
    bad: dict[NodeId, Any] = dict(liars if isinstance(liars, Mapping) else enumerate(liars, start=len(good)))
    if not good:
        raise FederationError("there is no honest node: nothing can be learned")
    if twice := [str(id) for id in bad if id in good]:
        raise FederationError(f"two nodes have the id {', '.join(twice)}")
    return good | bad, tuple(bad)


async def close(nodes: Iterable[Any]) -> None:
    """End the pools of nodes that have one, and the workers of nodes that are actors."""

    async def each(node: Any) -> None:
        try:
            if hasattr(node, "shutdown_distributed"):
                await ask(node, "shutdown_distributed")
        finally:
            if isinstance(node, ActorRef):
                await node.aclose()

    await asyncio.gather(*map(each, nodes), return_exceptions=True)  # a worker that died has nothing to end
