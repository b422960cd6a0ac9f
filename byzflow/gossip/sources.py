"""Graphs that the user has: matrices, lists and files of edges, networkx graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from byzflow.errors import SpecError
from byzflow.gossip.topology import MOST_EDGES, MOST_NODES, Node, Topology

LONGEST_FILE = 64 * 2**20  # bytes


def read(source: Any, nodes: tuple[Node, ...] | None) -> Topology:
    """The graph of a Topology, networkx graph, file, matrix, or list of edges, on `nodes` if they are given."""
    if isinstance(source, Topology):
        return source if nodes is None or nodes == source.nodes else source.renamed(nodes)
    if isinstance(source, nx.Graph):
        return from_networkx(source, nodes)
    if isinstance(source, Path):
        return from_file(source, nodes)
    if isinstance(source, np.ndarray):
        return from_matrix(source, nodes)
    if isinstance(source, Sequence):
        return from_edges(source, nodes)
    raise SpecError(
        f"a graph is a name, a matrix, a list or file of edges, or a networkx graph, got {type(source).__name__}"
    )


def from_matrix(matrix: NDArray[Any], nodes: tuple[Node, ...] | None = None) -> Topology:
    """An edge for each entry that is not 0, of an adjacency (n, n) with 0 on the diagonal, or of mixing weights.

    The entries are kept as weights unless all are 1. A diagonal is accepted only where each row sums to 1: it is what
    is left there. Raises SpecError for a matrix that is not square, symmetric, finite and >= 0 beside the diagonal.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise SpecError(f"a matrix of a graph is square, got shape {tuple(matrix.shape)}")
    n = len(matrix)
    ids = tuple(range(n)) if nodes is None else nodes
    if len(ids) != n:
        raise SpecError(f"the matrix has {n} rows, and there are {len(ids)} nodes")
    if n > MOST_NODES or (not np.issubdtype(matrix.dtype, np.number) and matrix.dtype != bool):
        raise SpecError(
            f"a matrix of a graph holds numbers, for at most {MOST_NODES} nodes; got {matrix.dtype}, n = {n}"
        )
    values = np.array(matrix, dtype=np.float64)
    if not np.isfinite(values).all():
        raise SpecError("the matrix of a graph holds NaN or Inf")
    apart = np.argwhere(np.abs(values - values.T) > 1e-12)
    if len(apart):
        i, j = apart[0]
        raise SpecError(f"the matrix is not symmetric: [{i}, {j}] is {values[i, j]:g}, [{j}, {i}] is {values[j, i]:g}")
    loops = np.flatnonzero(values.diagonal())
    if len(loops) and not np.allclose(values.sum(1), 1, atol=1e-9):
        raise SpecError(
            f"the matrix has {len(loops)} self loops, the first at {loops[0]}: leave them out, or let each row sum to 1"
        )
    places = np.argwhere(np.triu(values, 1) != 0)
    weights = tuple(float(values[a, b]) for a, b in places)
    edges = tuple((ids[a], ids[b]) for a, b in places)
    plain = not len(loops) and all(weight == 1 for weight in weights)
    return Topology(ids, edges, weights=None if plain else weights)


def from_edges(edges: Sequence[Any], nodes: tuple[Node, ...] | None = None) -> Topology:
    """Undirected edges (a, b), or all of them (a, b, weight); the nodes, if not given, as they first appear."""
    pairs = []
    for number, edge in enumerate(edges):
        if isinstance(edge, str) or not isinstance(edge, Sequence) or len(edge) not in (2, 3):
            raise SpecError(f"edge {number} is {edge!r}: write (a, b) or (a, b, weight)")
        pairs.append((edge[0], edge[1]))
    weighted = sum(len(edge) == 3 for edge in edges)
    if weighted not in (0, len(edges)):
        raise SpecError(f"{weighted} of {len(edges)} edges have weights: give all or none")
    ids = nodes if nodes is not None else tuple(dict.fromkeys(end for pair in pairs for end in pair))
    try:
        weights = tuple(float(edge[2]) for edge in edges) if weighted else None
    except (TypeError, ValueError) as problem:
        raise SpecError(f"a weight of an edge is not a number: {problem}") from None
    return Topology(ids, tuple(pairs), weights=weights)


def from_file(path: Path, nodes: tuple[Node, ...] | None = None) -> Topology:
    """A line an edge, "a b" or "a b weight"; what follows # is not read. Ids are ints if all of them are digits."""
    try:
        if (size := path.stat().st_size) > LONGEST_FILE:
            raise SpecError(f"{path} has {size} bytes, a file of edges at most {LONGEST_FILE}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise SpecError(f"{path} cannot be read as a file of edges: {problem}") from None
    rows: list[list[Any]] = []
    for number, text in enumerate(lines, start=1):
        words = text.partition("#")[0].split()
        if len(words) not in (0, 2, 3):
            raise SpecError(f"{path}, line {number}: {text[:40]!r} is not 'a b' or 'a b weight'")
        if words:
            rows.append(list(words))
    if len(rows) > MOST_EDGES:
        raise SpecError(f"{path} has {len(rows)} edges, a graph at most {MOST_EDGES}")
    names: dict[str, Node] = {} if nodes is None else {str(node): node for node in nodes}
    digits = nodes is None and all(word.isdecimal() for row in rows for word in row[:2])
    for row in rows:
        row[:2] = [int(word) if digits else names.get(word, word) for word in row[:2]]
    return from_edges(rows, nodes)


def from_networkx(graph: nx.Graph, nodes: tuple[Node, ...] | None = None) -> Topology:
    """Its edges, with their weights if all have one; on `nodes` in the graph's own order, if they are given.

    Labels that are neither str nor int become the places 0 to n - 1.
    """
    if graph.is_multigraph():
        raise SpecError("a graph has each edge once: pass nx.Graph(graph), or nx.DiGraph(graph)")
    labels = list(graph)
    plain = all(isinstance(label, str | int) and not isinstance(label, bool) for label in labels)
    own = tuple(labels) if plain else tuple(range(len(labels)))
    ids = own if nodes is None or set(nodes) == set(own) else nodes
    if len(ids) != len(labels):
        raise SpecError(f"the graph has {len(labels)} nodes, not {len(ids)}")
    name = dict(zip(labels, ids, strict=True))
    found = [(name[a], name[b], data.get("weight")) for a, b, data in graph.edges(data=True)]
    weights = tuple(float(w) for _, _, w in found) if found and all(w is not None for _, _, w in found) else None
    return Topology(ids, tuple((a, b) for a, b, _ in found), graph.is_directed(), weights=weights)
