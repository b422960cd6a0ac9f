"""Single operators, without writing a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from byzflow.graph.nodes import ComputationGraph, GraphInput, GraphNode
from byzflow.graph.scheduler import NodeScheduler
from byzflow.graph.subtask import Pool


def make_single_operator_graph(*, node_name: str, operator: Any, input_keys: Sequence[str]) -> ComputationGraph:
    """A graph of one node, with graph inputs of these names."""
    return ComputationGraph([GraphNode(node_name, operator, {key: GraphInput(key) for key in input_keys})])


class OperatorExecutor:
    """Runs one operator again and again, over the same pool.

    executor = OperatorExecutor(median, pool=pool)
    value = await executor.run({"gradients": rows})
    """

    def __init__(self, operator: Any, *, input_keys: Sequence[str] = ("gradients",), pool: Pool | None = None) -> None:
        graph = make_single_operator_graph(node_name="result", operator=operator, input_keys=input_keys)
        self.scheduler = NodeScheduler(graph, pool=pool)

    async def run(self, inputs: Mapping[str, Any]) -> Any:
        """The operator's result. Raises GraphError naming the inputs that are missing."""
        return (await self.scheduler.run(inputs))["result"]


async def run_operator(operator: Any, inputs: Mapping[str, Any], *, pool: Pool | None = None) -> Any:
    """One operator on these inputs, which bear whatever names the operator gives them."""
    return await OperatorExecutor(operator, input_keys=tuple(inputs), pool=pool).run(inputs)
