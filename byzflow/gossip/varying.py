"""Graphs that change with the round: every node draws the same one from the shared seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from byzflow.errors import SpecError
from byzflow.gossip.topology import Node, Topology, checked_nodes, topology

KEPT = 8  # graphs, which each node asks for many times in a round


@dataclass(frozen=True)
class Varying:
    """G(t): `at(t)` is the graph of round t, its version is t.

    `function` takes t and gives anything that `topology` reads; names are read with `seed`. A graph of one round need
    not be connected if it comes as a `Topology`.
    """

    nodes: tuple[Node, ...]
    function: Callable[[int], Any]
    seed: int = 0
    _drawn: dict[int, Topology] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.nodes)

    def at(self, t: int) -> Topology:
        """The graph of round t >= 0; equal for equal t if the function's answers are. SpecError as `topology`."""
        if t < 0:
            raise SpecError(f"a round is >= 0, got {t}")
        if t in self._drawn:
            return self._drawn[t]
        made = self.function(t)
        graph = made if isinstance(made, Topology) else topology(made, self.nodes, self.seed)
        if isinstance(graph, Varying) or set(graph.nodes) != set(self.nodes):
            raise SpecError(f"the graph of round {t} must have the same {len(self)} nodes")
        if len(self._drawn) >= KEPT:
            self._drawn.clear()
        self._drawn[t] = replace(graph, version=t)
        return self._drawn[t]


def random_regular_each(nodes: tuple[Node, ...], k: int, *, seed: int = 0) -> Varying:
    """A new random graph in each round, in which each node has k neighbours (Epidemic Learning's oracle)."""
    from byzflow.gossip.named import random_regular

    def draw(t: int) -> Topology:
        rng = Random(f"{seed}/random_regular_each/{t}")
        return _of(nodes, random_regular(len(nodes), k, rng=rng))

    draw(0)  # what is wrong with k is said at once
    return Varying(nodes, draw, seed)


def random_matchings(nodes: tuple[Node, ...], *, seed: int = 0) -> Varying:
    """Random pairs in each round; one node stays alone if they are odd."""

    def draw(t: int) -> Topology:
        order = list(range(len(nodes)))
        Random(f"{seed}/random_matchings/{t}").shuffle(order)
        return _of(nodes, zip(order[::2], order[1::2], strict=False))

    return Varying(nodes, draw, seed)


def one_peer_exponential(nodes: tuple[Node, ...], *, seed: int = 0) -> Varying:
    """In round t each sends to the one 2^(t mod log2 n) places on; a power of 2 nodes agree after log2 n rounds."""
    n, jumps = len(nodes), (len(nodes) - 1).bit_length()
    return Varying(
        nodes, lambda t: _of(nodes, ((a, (a + 2 ** (t % jumps)) % n) for a in range(n)), directed=True), seed
    )


def exponential(nodes: tuple[Node, ...], *, seed: int = 0) -> Varying:
    """In every round each sends to those 1, 2, 4, 8, ... places on."""
    n, jumps = len(nodes), (len(nodes) - 1).bit_length()
    graph = _of(nodes, ((a, (a + 2**k) % n) for a in range(n) for k in range(jumps)), directed=True)
    return Varying(nodes, lambda t: graph, seed)


CHANGING: dict[str, Callable[..., Varying]] = {
    each.__name__: each for each in (random_regular_each, random_matchings, one_peer_exponential, exponential)
}


def _of(nodes: tuple[Node, ...], pairs: Any, directed: bool = False) -> Topology:
    return Topology(checked_nodes(nodes), tuple((nodes[a], nodes[b]) for a, b in pairs), directed)
