"""Inputs, nodes, and the graph of them, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import Any

from byzflow.errors import GraphCycle, GraphError, UnknownDependency, did_you_mean
from byzflow.graph.operator import CallableOp, Operator


@dataclass(frozen=True)
class MessageSource:
    """An input of a node that comes with a message: its payload, or `payload[field]`. `timeout` in seconds."""

    message_type: str
    field: str | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class GraphInput:
    """Data that whoever runs the graph supplies under this name."""

    name: str

    @staticmethod
    def from_message(message_type: str, field: str | None = None, timeout: float | None = None) -> MessageSource:
        """An input that comes with a message instead."""
        return MessageSource(message_type, field, timeout)


graph_input = GraphInput


@dataclass(frozen=True, eq=False)
class GraphNode:
    """A step and where its inputs come from: other nodes, or their names, graph inputs, or messages.

    `op` may also be one of byzflow's operators (its rows are the first input), or a function of the inputs. Raises
    GraphError for anything else.
    """

    name: str
    op: Any
    inputs: Mapping[str, str | GraphInput | GraphNode | MessageSource] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {key: each.name if isinstance(each, GraphNode) else each for key, each in self.inputs.items()}
        for key, each in named.items():
            if not isinstance(each, str | GraphInput | MessageSource):
                raise GraphError(
                    f"node {self.name!r}: its input {key!r} is of type {type(each).__name__}, not a node, a "
                    f"GraphInput or a message; bind a constant into the operator"
                )
        object.__setattr__(self, "inputs", MappingProxyType(named))
        object.__setattr__(self, "op", _step(self.name, self.op))

    def dependencies(self) -> list[str]:
        """Names of the nodes that this one needs."""
        return [each for each in self.inputs.values() if isinstance(each, str)]


def _step(name: str, op: Any) -> Operator:
    from byzflow.graph.aggregation import RobustOp  # it imports torch

    if isinstance(op, Operator):
        return op
    if RobustOp.takes(op):
        return RobustOp(op)
    if isinstance(op, Callable):  # type: ignore[arg-type]
        return CallableOp(op)
    raise GraphError(f"node {name!r}: {op!r} is no operator and no function")


class ComputationGraph:
    """Nodes in an order in which each comes after what it needs; only what the outputs need is ever run.

    Parameters
    ----------
    nodes : at least one, names unique and none that of a graph input.
    outputs : the nodes whose results are wanted, or their names; the last node if not said.

    Attributes
    ----------
    nodes : name -> node, in the order in which they run one by one.
    outputs : names.
    required_inputs : names of the graph inputs that a run must supply.

    Raises
    ------
    GraphError : no node, a name twice, a node named like an input, no output or an unknown one.
    UnknownDependency : a node needs one that is not there.
    GraphCycle : nodes need each other; the message names the circle.
    """

    def __init__(self, nodes: Sequence[GraphNode], *, outputs: Sequence[str | GraphNode] | None = None) -> None:
        if not nodes:
            raise GraphError("a graph needs at least one node")
        named: dict[str, GraphNode] = {}
        for node in nodes:
            if node.name in named:
                raise GraphError(f"two nodes are named {node.name!r}; give each its own name")
            named[node.name] = node
        for node in nodes:
            for dependency in node.dependencies():
                if dependency not in named:
                    raise UnknownDependency(
                        f"node {node.name!r} needs {dependency!r}, which is no node; "
                        f"{did_you_mean(dependency, named)} Data from outside is GraphInput({dependency!r})"
                    )
        order = _order(named)
        if isinstance(outputs, str) or (outputs is not None and not outputs):
            raise GraphError(f"outputs are a list of at least one node, got {outputs!r}")
        wanted = (order[-1],) if outputs is None else outputs
        self.outputs = tuple(each.name if isinstance(each, GraphNode) else each for each in wanted)
        for name in self.outputs:
            if name not in named:
                raise GraphError(f"the output {name!r} is no node; {did_you_mean(name, named)}")
        needed = _needed(named, self.outputs)
        self.nodes: Mapping[str, GraphNode] = MappingProxyType({name: named[name] for name in order if name in needed})
        sources = [each for node in nodes for each in node.inputs.values()]
        if clash := sorted({each.name for each in sources if isinstance(each, GraphInput)} & named.keys()):
            raise GraphError(f"{clash[0]!r} is the name of a node and of a graph input; rename one of them")
        self.required_inputs = frozenset(
            each.name for node in self.nodes.values() for each in node.inputs.values() if isinstance(each, GraphInput)
        )

    def sorter(self) -> TopologicalSorter[str]:
        """Prepared: says which nodes are ready, and is told which are done."""
        sorter = TopologicalSorter({name: node.dependencies() for name, node in self.nodes.items()})
        sorter.prepare()
        return sorter


def _order(nodes: Mapping[str, GraphNode]) -> list[str]:
    try:
        return list(TopologicalSorter({name: node.dependencies() for name, node in nodes.items()}).static_order())
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise GraphCycle(f"these nodes need each other: {circle}") from None


def _needed(nodes: Mapping[str, GraphNode], outputs: Iterable[str]) -> set[str]:
    needed: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += nodes[name].dependencies()
    return needed
