"""Mixing weights: what each node gives to its own value and to each one that it hears.

Row i of W sums to 1, w_ii = 1 - sum_j w_ij. Degrees come from the shared graph, never from what a peer says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from byzflow.errors import SpecError
from byzflow.gossip.topology import Node, Topology

MOST_DENSE = 5_000  # nodes: W of so many has 200 MB
CLOSE = 1e-9


@dataclass(frozen=True, eq=False)
class Weights:
    """W of a graph, node by node: `of[i][j]` is w_ij for each j that i hears, in the order of `in_neighbours`.

    Raises SpecError for a weight of a pair without an edge, one that is missing, negative or not finite, and weights
    of a node's neighbours that sum to more than 1.
    """

    topology: Topology
    of: Mapping[Node, Mapping[Node, float]]

    def __post_init__(self) -> None:
        for node in self.topology.nodes:
            heard = self.of.get(node, {})
            if tuple(heard) != self.topology.in_neighbours(node):
                raise SpecError(
                    f"node {node!r} needs one weight for each of its {self.topology.degree(node)} neighbours"
                )
            if not all(0 <= weight < np.inf for weight in heard.values()):
                raise SpecError(f"the weights of node {node!r} must be finite and >= 0, got {[*heard.values()][:5]}")
            if (total := sum(heard.values())) > 1 + CLOSE:
                raise SpecError(f"the weights of node {node!r}'s neighbours sum to {total:.6g}, and may to at most 1")

    def own(self, node: Node) -> float:
        """w_ii."""
        return max(0.0, 1 - sum(self.of[node].values()))

    def row(self, node: Node) -> NDArray[np.float64]:
        """(1 + degree,): w_ii, then w_ij in the order of `in_neighbours`: the extra `weights` of a gossip rule."""
        return np.array([self.own(node), *self.of[node].values()])

    def around(self, node: Node) -> dict[Node, float]:
        """What a node gives to itself, and to each one that it hears."""
        return {node: self.own(node), **self.of[node]}

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """(n, n), read-only; SpecError above 5000 nodes, where `of` and `row` are left."""
        n = len(self.topology)
        if n > MOST_DENSE:
            raise SpecError(f"W of {n} nodes is too large as a matrix, at most {MOST_DENSE}: use row(node)")
        w = np.zeros((n, n))
        for i, node in enumerate(self.topology.nodes):
            w[i, i] = self.own(node)
            for other, weight in self.of[node].items():
                w[i, self.topology.place(other)] = weight
        w.flags.writeable = False
        return w

    @property
    def symmetric(self) -> bool:
        """Whether w_ij = w_ji; then W is doubly stochastic, and mixing keeps the mean."""
        return all(
            abs(weight - self.of[other].get(node, 0.0)) <= CLOSE
            for node, heard in self.of.items()
            for other, weight in heard.items()
        )

    @property
    def doubly_stochastic(self) -> bool:
        """Whether the columns sum to 1 as well, so that mixing keeps the mean."""
        columns = {node: self.own(node) for node in self.topology.nodes}
        for heard in self.of.values():
            for other, weight in heard.items():
                columns[other] += weight
        return all(abs(total - 1) <= CLOSE for total in columns.values())

    def checked(self, *, symmetric: bool = False, doubly_stochastic: bool = False) -> Weights:
        """Itself; SpecError if a rule needs what W is not."""
        if symmetric and not self.symmetric:
            raise SpecError("W must be symmetric: take metropolis_hastings")
        if doubly_stochastic and not self.doubly_stochastic:
            raise SpecError("W must be doubly stochastic: take metropolis_hastings")
        return self


def uniform(topology: Topology) -> Weights:
    """w_ij = 1/(1 + d_i): the plain mean of a neighbourhood. Symmetric on regular graphs only."""
    return _each(topology, lambda i, j: 1 / (1 + topology.degree(i)))


def self_weight(topology: Topology, alpha: float) -> Weights:
    """w_ii = alpha, 0 to 1, the rest in equal parts."""
    if not 0 <= alpha <= 1:
        raise SpecError(f"the weight of the own value is 0 to 1, got {alpha}")
    return _each(topology, lambda i, j: (1 - alpha) / topology.degree(i))


def metropolis_hastings(topology: Topology, f: int = 0) -> Weights:
    """w_ij = 1/(1 + f + max(d_i, d_j)), symmetric on every undirected graph.

    With f > 0 it is robust MH: `topology` holds the honest edges, and each node keeps f more slots for Byzantine
    neighbours, none of which may weigh more than its heaviest honest one (Gaucher, Dieuleveut and Hendrikx, ICML 2025,
    https://arxiv.org/abs/2410.10418).
    """
    if isinstance(f, bool) or f < 0:
        raise SpecError(f"f, the Byzantine neighbours of a node, is >= 0, got {f}")
    return _each(topology, lambda i, j: 1 / (1 + f + max(topology.degree(i), topology.degree(j))))


def given(topology: Topology) -> Weights:
    """The weights that the edges have; SpecError if they have none."""
    if topology.weights is None:
        raise SpecError("the edges of the graph have no weights: take metropolis_hastings, or give weights")
    found = dict(zip(topology.edges, topology.weights, strict=True))
    return _each(topology, lambda i, j: found[(j, i)] if (j, i) in found else found[(i, j)])


def mixing(topology: Topology) -> Weights:
    """The weights that nodes of this graph mix by: those of its edges if they have some, else Metropolis-Hastings."""
    return metropolis_hastings(topology) if topology.weights is None else given(topology)


def _each(topology: Topology, weight: Callable[[Node, Node], float]) -> Weights:
    """`weight(i, j)` for each j that i hears."""
    return Weights(topology, {i: {j: weight(i, j) for j in topology.in_neighbours(i)} for i in topology.nodes})
