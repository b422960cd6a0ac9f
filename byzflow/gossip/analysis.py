"""What a graph can bear: how fast it mixes, how well it holds together, and where liars weigh most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import networkx as nx
import numpy as np

from byzflow.errors import SpecError
from byzflow.gossip.topology import Node, Topology
from byzflow.gossip.weights import Weights, mixing

MOST_SPECTRAL = 2_000  # nodes: the eigenvalues of so many take seconds
MOST_CUTS = 200  # nodes: vertex connectivity and betweenness look at all pairs
WEAKEST = 5


@dataclass(frozen=True)
class Report:
    """What `analyse` found; None where the graph is too large for it."""

    nodes: int
    edges: int
    version: int
    components: tuple[int, ...]
    """Their sizes, the largest first."""
    degrees: tuple[int, int]
    """The smallest and the largest."""
    lambda2: float | None
    """The second largest modulus of W's eigenvalues: what a round of plain mixing leaves of the disagreement."""
    spectral_gap: float | None
    mu2: float | None
    """Algebraic connectivity of the honest nodes' graph, weighted by W."""
    vertex_connectivity: int | None
    """So many nodes must fail to cut the graph."""
    byzantine_weight: Mapping[Node, float]
    """b_i: the weight of node i's Byzantine neighbours, or of its f heaviest neighbours."""
    degree_centrality: Mapping[Node, float]
    betweenness: Mapping[Node, float] | None
    weakest: tuple[Node, ...]
    """Those where Byzantine neighbours have the largest share of all neighbours' weight, then those of low degree."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""

        def shown(value: float | None) -> str:
            return "not computed, too many nodes" if value is None else f"{value:.4g}"

        heaviest = max(self.byzantine_weight.values())
        return [
            f"{self.nodes} nodes, {self.edges} edges, degree {self.degrees[0]} to {self.degrees[1]}, "
            f"version {self.version}",
            "connected"
            if len(self.components) == 1
            else f"{len(self.components)} components of {self.components[:10]}",
            f"|lambda2(W)|         {shown(self.lambda2)}",
            f"spectral gap         {shown(self.spectral_gap)}",
            f"mu2                  {shown(self.mu2)}",
            f"vertex connectivity  {shown(self.vertex_connectivity)}",
            f"Byzantine weight     {heaviest:.4g} at most",
            f"weakest nodes        {', '.join(map(str, self.weakest))}",
        ]


def analyse(topology: Topology, f: int = 0, byzantine: Iterable[Node] = (), weights: Weights | None = None) -> Report:
    """The report of an undirected graph for f Byzantine neighbours a node, or for a set of Byzantine nodes.

    `weights` are Metropolis-Hastings if not given. Raises SpecError for a directed graph, f < 0, an unknown node, both
    f and a set, or a set that leaves no honest node.
    """
    liars = {topology.nodes[topology.place(node)] for node in byzantine}
    if topology.directed:
        raise SpecError("the report is of undirected graphs")
    if f < 0 or (f and liars) or len(liars) == len(topology):
        raise SpecError(
            f"give f >= 0 or Byzantine nodes, at least one node being honest; got f={f}, {len(liars)} nodes"
        )
    w = mixing(topology) if weights is None else weights
    graph = topology.graph()
    n = len(topology)
    honest = [node for node in topology.nodes if node not in liars]
    b = {node: _byzantine(w.of[node], f, liars) for node in honest}
    degree = {node: topology.degree(node) for node in topology.nodes}
    share = {node: b[node] / max(sum(w.of[node].values()), 1e-300) for node in honest}
    gap = lambda2(w) if n <= MOST_SPECTRAL else None
    small = n <= MOST_CUTS
    return Report(
        nodes=n,
        edges=len(topology.edges),
        version=topology.version,
        components=tuple(sorted(map(len, nx.connected_components(graph)), reverse=True)),
        degrees=(min(degree.values()), max(degree.values())),
        lambda2=gap,
        spectral_gap=None if gap is None else 1 - gap,
        mu2=mu2(w, honest) if n <= MOST_SPECTRAL else None,
        vertex_connectivity=nx.node_connectivity(graph) if small else None,
        byzantine_weight=b,
        degree_centrality={node: count / (n - 1) for node, count in degree.items()},
        betweenness=nx.betweenness_centrality(graph) if small else None,
        weakest=tuple(sorted(honest, key=lambda node: (-share[node], degree[node]))[:WEAKEST]),
    )


def lambda2(weights: Weights) -> float:
    """The second largest modulus of W's eigenvalues, 0 to 1; 1 minus it is the spectral gap."""
    w = weights.matrix
    values = np.linalg.eigvalsh(w) if weights.symmetric else np.linalg.eigvals(w)
    return float(np.sort(np.abs(values))[-2])


def mu2(weights: Weights, honest: Iterable[Node]) -> float:
    """The second smallest eigenvalue of the Laplacian of W among the honest nodes, W taken as (W + W.T)/2."""
    places = [weights.topology.place(node) for node in honest]
    w = weights.matrix[np.ix_(places, places)].copy()
    np.fill_diagonal(w, 0)
    w = (w + w.T) / 2
    return float(np.linalg.eigvalsh(np.diag(w.sum(1)) - w)[1]) if len(places) > 1 else 0.0


def _byzantine(heard: Mapping[Node, float], f: int, liars: set[Node]) -> float:
    if liars:
        return sum(weight for node, weight in heard.items() if node in liars)
    return sum(sorted(heard.values(), reverse=True)[:f])
