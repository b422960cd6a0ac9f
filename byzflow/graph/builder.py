"""Writes a graph as calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from byzflow.errors import GraphError
from byzflow.graph.nodes import ComputationGraph, GraphInput, GraphNode, MessageSource


@dataclass(frozen=True)
class LazyNode:
    """A value that a graph will have; `apply` computes another from it."""

    builder: GraphBuilder
    source: str | GraphInput | MessageSource

    def apply(self, op: Any, *, name: str | None = None, key: str = "rows", **others: LazyNode) -> LazyNode:
        """The result of `op` on this value, its input `key`, and on `others`."""
        return self.builder.node(op, name=name, **{key: self, **others})


class GraphBuilder:
    """Collects nodes.

    builder = GraphBuilder()
    result = builder.input("gradients").apply(nnm).apply(median)
    graph = builder.build(result)
    """

    def __init__(self) -> None:
        self._nodes: list[GraphNode] = []

    def input(self, name: str) -> LazyNode:
        """Data that whoever runs the graph supplies."""
        return LazyNode(self, GraphInput(name))

    def message(self, message_type: str, field: str | None = None, timeout: float | None = None) -> LazyNode:
        """Data that comes with a message."""
        return LazyNode(self, MessageSource(message_type, field, timeout))

    def node(self, op: Any, *, name: str | None = None, **inputs: LazyNode) -> LazyNode:
        """The result of `op` on these values; its name is made from the operator's if not given."""
        if strangers := sorted(key for key, each in inputs.items() if each.builder is not self):
            raise GraphError(f"the inputs {', '.join(strangers)} belong to another builder")
        node = GraphNode(name or self._free(op), op, {key: each.source for key, each in inputs.items()})
        self._nodes.append(node)
        return LazyNode(self, node.name)

    def build(self, *outputs: LazyNode) -> ComputationGraph:
        """The graph, with these results as its outputs; the last node's if none is named."""
        names = [each.source for each in outputs if isinstance(each.source, str)]
        if len(names) < len(outputs):
            raise GraphError("an output must be the result of a node, not an input")
        return ComputationGraph(self._nodes, outputs=names or None)

    def _free(self, op: Any) -> str:
        base = str(getattr(op, "name", None) or getattr(op, "__name__", None) or type(op).__name__)
        taken = {node.name for node in self._nodes}
        return next(name for k in range(len(taken) + 1) if (name := base if not k else f"{base}_{k + 1}") not in taken)
