"""What becomes of a graph when a node goes, or comes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from statistics import median_low

import networkx as nx

from byzflow.gossip.topology import Edge, Node, Topology


def without(graph: Topology, node: Node, honest: Collection[Node] | None = None) -> Topology:
    """The next version, without a node; what it held together is joined again.

    A node between two others leaves an edge between them, so a ring stays a ring and a line a line. Else, if the
    honest nodes (all, unless said) fell apart, those among its former neighbours are joined in a path. SpecError if
    fewer than 2 nodes would be left.
    """
    speakers, listeners = graph.in_neighbours(node), graph.neighbours(node)
    around = sorted({*speakers, *listeners}, key=graph.place)
    nodes = [each for each in graph.nodes if each != node]
    edges = [edge for edge in graph.edges if node not in edge]
    if not graph.directed and len(around) == 2:
        edges += _new(edges, [(around[0], around[1])])
    elif graph.directed and len(speakers) == len(listeners) == 1 and speakers != listeners:
        edges += [edge for edge in [(speakers[0], listeners[0])] if edge not in set(edges)]
    trusted = [each for each in nodes if honest is None or each in honest]
    if not _whole(graph, trusted, edges):
        path = list(pairwise(each for each in around if each in set(trusted)))
        edges += _new(edges, path) if not graph.directed else _missing(edges, [*path, *((b, a) for a, b in path)])
    return graph.with_edges(edges, nodes)


def joined(graph: Topology, node: Node, neighbours: Sequence[Node] | None = None) -> Topology:
    """The next version, with one node more, joined to these in both directions.

    By default: to all of a complete graph; into a ring, between its last node and its first; else to as many as most
    have, those with the fewest neighbours first. SpecError for unknown neighbours.
    """
    edges = list(graph.edges)
    degrees = [graph.degree(each) for each in graph.nodes]
    if neighbours is None:
        neighbours = sorted(graph.nodes, key=graph.degree)[: max(1, median_low(degrees))]
        if set(degrees) == {2} and len(graph) > 3 and graph.connected and not graph.directed:
            last, first = _ring_edge(graph)
            edges = [edge for edge in edges if set(edge) != {last, first}]
            neighbours = [last, first]
        elif set(degrees) == {len(graph) - 1}:
            neighbours = graph.nodes
        if graph.directed and set(degrees) == {1} and graph.connected:
            last = graph.nodes[-1]
            first = graph.neighbours(last)[0]
            kept = [edge for edge in edges if edge != (last, first)]
            return graph.with_edges([*kept, (last, node), (node, first)], [*graph.nodes, node])
    new: list[Edge] = [(each, node) for each in neighbours]
    if graph.directed:
        new += [(node, each) for each in neighbours]
    return graph.with_edges([*edges, *new], [*graph.nodes, node])


def _ring_edge(graph: Topology) -> Edge:
    """An edge of a ring at its last node."""
    last = graph.nodes[-1]
    return last, graph.neighbours(last)[0]


def _whole(graph: Topology, nodes: Collection[Node], edges: Iterable[Edge]) -> bool:
    """If these nodes are connected among themselves."""
    drawn = nx.DiGraph() if graph.directed else nx.Graph()
    drawn.add_nodes_from(nodes)
    drawn.add_edges_from((a, b) for a, b in edges if a in drawn and b in drawn)
    return not nodes or bool(nx.is_strongly_connected(drawn) if graph.directed else nx.is_connected(drawn))


def _new(edges: Iterable[Edge], wanted: Iterable[Edge]) -> list[Edge]:
    """Those of undirected edges that are not there yet."""
    there = {frozenset(edge) for edge in edges}
    return [edge for edge in wanted if frozenset(edge) not in there]


def _missing(edges: Iterable[Edge], wanted: Iterable[Edge]) -> list[Edge]:
    """Those of directed edges that are not there yet."""
    there = set(edges)
    return [edge for edge in wanted if edge not in there]
