"""Who hears whom: a graph as an immutable, versioned value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from byzflow.errors import SpecError

if TYPE_CHECKING:
    from byzflow.gossip.varying import Varying

Node: TypeAlias = str | int
Edge: TypeAlias = tuple[Node, Node]
MOST_NODES = 10_000
MOST_EDGES = 2_000_000


@dataclass(frozen=True, repr=False)
class Topology:
    """Nodes and the edges between them; equal and hashable by content, the version included.

    An edge (a, b) lets a send to b; in an undirected graph b also to a, and each edge is written once. `weights`, one
    finite number >= 0 an edge, are for `byzflow.gossip.weights.given`. Edges are kept in the order of the nodes'
    places, whatever the order in which they are given. It may be disconnected: a graph read by `topology` is not.

    Raises SpecError, with numbers, for fewer than 2 or more than 10000 nodes, equal or unknown ids, self loops,
    duplicate edges, more than 2 million edges, and weights that do not fit.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    directed: bool = False
    version: int = 0
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", checked_nodes(self.nodes))
        if len(self.edges) > MOST_EDGES:
            raise SpecError(f"a graph has at most {MOST_EDGES} edges, got {len(self.edges)}")
        if self.weights is not None and len(self.weights) != len(self.edges):
            raise SpecError(f"weights need one number an edge: {len(self.edges)}, got {len(self.weights)}")
        found: dict[tuple[int, int], int] = {}
        for number, edge in enumerate(self.edges):
            a, b = (self.place(end) for end in edge)
            if a == b:
                raise SpecError(f"edge {number} joins node {edge[0]!r} to itself: leave self loops out")
            pair = (a, b) if self.directed or a < b else (b, a)
            if (first := found.setdefault(pair, number)) != number:
                raise SpecError(f"edges {first} and {number} both join {edge[0]!r} and {edge[1]!r}: write each once")
        order = sorted(found)
        object.__setattr__(self, "edges", tuple((self.nodes[a], self.nodes[b]) for a, b in order))
        if self.weights is not None:
            weights = tuple(float(self.weights[found[pair]]) for pair in order)
            if not all(0 <= weight < np.inf for weight in weights):
                raise SpecError("weights of edges are finite and >= 0")
            object.__setattr__(self, "weights", weights)

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        kind = "directed " if self.directed else ""
        return f"Topology({len(self)} nodes, {len(self.edges)} {kind}edges, version {self.version})"

    def __contains__(self, node: object) -> bool:
        return node in self._places

    def place(self, node: Node) -> int:
        """Which of the nodes it is, from 0; SpecError if it is none."""
        try:
            return self._places[node]
        except (KeyError, TypeError):
            some = ", ".join(map(repr, self.nodes[:3]))
            raise SpecError(f"no node {node!r} in a graph of {len(self)}: its nodes are {some}, ...") from None

    def neighbours(self, node: Node) -> tuple[Node, ...]:
        """To whom a node sends, in the order of the nodes, itself not among them."""
        return self._out[self.place(node)]

    def in_neighbours(self, node: Node) -> tuple[Node, ...]:
        """Whom a node hears; its neighbours, if the graph is undirected."""
        return self._in[self.place(node)]

    def degree(self, node: Node) -> int:
        """How many nodes a node hears."""
        return len(self.in_neighbours(node))

    @cached_property
    def adjacency(self) -> NDArray[np.float64]:
        """(n, n): 1 at [i, j] where node i sends to node j; read-only."""
        matrix = np.zeros((len(self), len(self)))
        for a, b in self.edges:
            matrix[self._places[a], self._places[b]] = 1
        if not self.directed:
            matrix += matrix.T
        matrix.flags.writeable = False
        return matrix

    @property
    def connected(self) -> bool:
        """Whether every node hears, over others, from every other one."""
        graph = self.graph()
        return bool(nx.is_strongly_connected(graph) if self.directed else nx.is_connected(graph))

    def graph(self) -> nx.Graph:
        """A networkx graph of the same nodes and edges; a new one each time."""
        graph = nx.DiGraph() if self.directed else nx.Graph()
        graph.add_nodes_from(self.nodes)
        graph.add_edges_from(self.edges)
        return graph

    def changed(self, add: Iterable[Edge] = (), remove: Iterable[Edge] = ()) -> Topology:
        """The next version, with and without some edges; weights do not outlast a change. SpecError as above."""
        gone: set[Edge] = set()
        for a, b in remove:
            edge = (a, b) if self.directed or self.place(a) < self.place(b) else (b, a)
            if self.place(b) not in map(self.place, self.neighbours(a)):
                raise SpecError(f"no edge joins {a!r} and {b!r}: nothing to remove")
            gone.add(edge)
        return self.with_edges([*(edge for edge in self.edges if edge not in gone), *add])

    def with_edges(self, edges: Iterable[Edge], nodes: Sequence[Node] | None = None) -> Topology:
        """The next version, with other edges, or other nodes too."""
        return Topology(
            self.nodes if nodes is None else tuple(nodes), tuple(edges), self.directed, version=self.version + 1
        )

    def renamed(self, nodes: Sequence[Node]) -> Topology:
        """The same graph with other ids, in the same order."""
        if len(nodes) != len(self):
            raise SpecError(f"the graph has {len(self)} nodes, got {len(nodes)} names")
        edges = tuple((nodes[self._places[a]], nodes[self._places[b]]) for a, b in self.edges)
        return replace(self, nodes=tuple(nodes), edges=edges)

    @cached_property
    def _places(self) -> Mapping[Node, int]:
        return {node: place for place, node in enumerate(self.nodes)}

    @cached_property
    def _out(self) -> list[tuple[Node, ...]]:
        return self._lists(out=True)

    @cached_property
    def _in(self) -> list[tuple[Node, ...]]:
        return self._lists(out=False) if self.directed else self._out

    def _lists(self, out: bool) -> list[tuple[Node, ...]]:
        lists: list[list[int]] = [[] for _ in self.nodes]
        for a, b in self.edges:
            i, j = self._places[a], self._places[b]
            if out or not self.directed:
                lists[i].append(j)
            if not out or not self.directed:
                lists[j].append(i)
        return [tuple(self.nodes[place] for place in sorted(each)) for each in lists]


def checked_nodes(nodes: int | Sequence[Node]) -> tuple[Node, ...]:
    """The ids, 0 to n - 1 for a number n; SpecError for fewer than 2, more than 10000, equal ones, or other types."""
    size = int(nodes) if isinstance(nodes, int | np.integer) else len(nodes)
    if not 2 <= size <= MOST_NODES:
        raise SpecError(f"a graph has 2 to {MOST_NODES} nodes, got {size}")
    ids: tuple[Any, ...] = tuple(range(size)) if isinstance(nodes, int | np.integer) else tuple(nodes)
    for node in ids:
        if not isinstance(node, str | int) or isinstance(node, bool):
            raise SpecError(f"a node's id is a str or an int, got {node!r}")
    if len(set(ids)) < size:
        twice = next(node for place, node in enumerate(ids) if node in ids[:place])
        raise SpecError(f"two nodes have the id {twice!r}")
    return ids


Source: TypeAlias = (
    "str | Topology | Varying | Path | nx.Graph | NDArray[Any] | Sequence[Sequence[Any]] | Callable[[int], Any]"
)


def topology(spec: Source, nodes: int | Sequence[Node] | None = None, seed: int = 0) -> Topology | Varying:
    """The graph of a name, a matrix, a list or file of edges, a networkx graph, or a function of the round.

        topology("k_regular:4", 8)         topology("small_world(k=4, beta=0.1)", ["a", "b", ...], seed=3)
        topology(matrix)                   topology([("a", "b"), ("b", "c")])
        topology(Path("edges.txt"))        topology(lambda t: "ring" if t % 2 else "star", 8)      # a Varying

    `nodes` is how many, or their ids; where the source has its own, it may be left out. Random graphs are drawn from
    `seed` alone. Raises SpecError for what does not read, is invalid (see `Topology`), or is not connected.
    """
    from byzflow.gossip import named, sources, varying

    if isinstance(spec, varying.Varying):
        return spec
    if isinstance(spec, str):
        if nodes is None:
            raise SpecError(f"how many nodes has the graph? Write topology({spec!r}, nodes=...)")
        return connected(named.read(spec, checked_nodes(nodes), seed), spec)
    if callable(spec) and not isinstance(spec, Topology | nx.Graph):
        if nodes is None:
            raise SpecError("how many nodes has the graph that changes? Write topology(function, nodes=...)")
        return varying.Varying(checked_nodes(nodes), spec, seed)
    return connected(sources.read(spec, None if nodes is None else checked_nodes(nodes)), "the graph")


def connected(graph: Topology | Varying, what: str) -> Topology | Varying:
    """The graph, if each node is reached from every other one, or if it changes; else SpecError."""
    if isinstance(graph, Topology) and not graph.connected:
        parts = nx.strongly_connected_components if graph.directed else nx.connected_components
        sizes = sorted(map(len, parts(graph.graph())), reverse=True)
        raise SpecError(
            f"{what} of {len(graph)} nodes is not connected: {len(sizes)} parts, the smallest of {sizes[-1]}"
        )
    return graph
