"""byzflow's own operators as steps of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from byzflow.errors import GraphError
from byzflow.graph.operator import OpContext, Operator
from byzflow.graph.subtask import Pool

OF_AN_ATTACK = {"model", "x", "y", "honest_grads", "base_grad"}


class RobustOp(Operator):
    """An aggregator, pre-aggregator or attack. Its rows are the first input of the node, the others its extras.

    An attack whose inputs are all named as those of `Attack.apply` gives the one row of one attacker.

    The engine runs it on threads of its own, which is as fast as a pool on the same host; the pool is left to
    steps that it speeds up. With `spread`, each worker of the pool runs it on its share of the coordinates.
    """

    def __init__(self, operator: Any, *, spread: bool = False) -> None:
        """`operator`: an operator, or a spec such as "nnm(f=2) | median"."""
        if isinstance(operator, str):
            from byzflow.spec import parse

            operator = parse(operator)
        self.operator = operator
        self.name, self.spread = str(operator), spread

    @staticmethod
    def takes(op: Any) -> bool:
        """If `op` is one of byzflow's operators, or a spec."""
        if isinstance(op, str):
            return True
        from byzflow.operators import Operator as Robust

        return isinstance(op, Robust)

    async def run(self, inputs: Mapping[str, Any], *, context: OpContext, pool: Pool | None = None) -> Any:
        """The rows aggregated, mixed, or attacked: here, or over the pool's workers. Raises GraphError."""
        if pool is None or not self.spread:
            return await super().run(inputs, context=context, pool=pool)
        from byzflow.actors.pool import ActorPool
        from byzflow.actors.tiles import aggregate_over

        if not isinstance(pool, ActorPool):
            raise GraphError(f"node {context.node_name!r}: spread=True needs an ActorPool, got {type(pool).__name__}")
        rows, extras = self._rows(inputs, context)
        return await aggregate_over(pool, self.operator, rows, **extras)

    def compute(self, inputs: Mapping[str, Any], *, context: OpContext) -> Any:
        """The rows aggregated, mixed, or attacked. Raises GraphError without an input."""
        if inputs and inputs.keys() <= OF_AN_ATTACK and hasattr(self.operator, "apply"):
            return self.operator.apply(**inputs)
        rows, extras = self._rows(inputs, context)
        return self.operator(rows, **extras)

    def _rows(self, inputs: Mapping[str, Any], context: OpContext) -> tuple[Any, dict[str, Any]]:
        if not inputs:
            raise GraphError(f"node {context.node_name!r}: {self.name} needs rows, its first input")
        (_, rows), *extras = inputs.items()
        return rows, dict(extras)
