"""Who hears whom: the graphs that a spec names."""

from __future__ import annotations

import networkx as nx

from byzflow.errors import SpecError

MOST_NODES = 10_000


def graph_of(spec: str, n: int) -> nx.Graph:
    """The undirected graph "ring", "complete" or "k_regular:K" on nodes 0 to n - 1; without self loops, connected.

    "k_regular:4" joins each node of a circle to the two nearest on either side; an odd K joins it to the opposite
    one also. Raises SpecError, with what would do.
    """
    if not 2 <= n <= MOST_NODES:
        raise SpecError(f"a graph has 2 to {MOST_NODES} nodes, got {n}")
    name, _, argument = spec.replace("-", "_").partition(":")
    if name == "ring" and not argument:
        return nx.cycle_graph(n) if n > 2 else nx.path_graph(2)
    if name == "complete" and not argument:
        return nx.complete_graph(n)
    if name == "k_regular" and argument.isdecimal():
        k = int(argument)
        if not (2 <= k < n and (k % 2 == 0 or n % 2 == 0)):
            raise SpecError(f"k_regular:K of {n} nodes needs 2 <= K < {n}, K even if the nodes are odd, got {argument}")
        return nx.circulant_graph(n, [*range(1, k // 2 + 1), *([n // 2] if k % 2 else [])])
    raise SpecError(f"no graph {spec[:60]!r}; write ring, complete or k_regular:4, or pass a networkx graph")
