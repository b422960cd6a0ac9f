"""The graphs that have a name, on places 0 to n - 1.

A function is one name: its parameters are those of the spec. Random ones draw from a `random.Random`, at most TRIES
times, until the graph is connected.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable
from itertools import combinations
from random import Random
from typing import Any

import networkx as nx

from byzflow.errors import SpecError, did_you_mean
from byzflow.gossip.topology import MOST_EDGES, Node, Topology
from byzflow.gossip.varying import CHANGING, Varying
from byzflow.spec import literal

TRIES = 100
HINT = "write ring, star, complete, k_regular:4 or another name of docs/gossip.md, or pass a graph"


def ring(n: int) -> Iterable[tuple[int, int]]:
    """Each with the next, the last with the first."""
    return list(nx.cycle_graph(n).edges) if n > 2 else [(0, 1)]


def line(n: int) -> Iterable[tuple[int, int]]:
    """Each with the next."""
    return ((place, place + 1) for place in range(n - 1))


def star(n: int) -> Iterable[tuple[int, int]]:
    """The first with all others."""
    return ((0, place) for place in range(1, n))


def full(n: int) -> Iterable[tuple[int, int]]:
    """Each with each."""
    _few(n * (n - 1) // 2, f"full of {n} nodes")
    return combinations(range(n), 2)


class _Unsaid(int):
    """A number that a spec leaves to the graph; one that is written is another object."""


FOUR = _Unsaid(4)


def k_regular(n: int, k: int = FOUR) -> Iterable[tuple[int, int]]:
    """On a circle, each with the k/2 nearest (4 in all, unless said) on either side; odd k: the opposite one too."""
    k = min(k, n - 1) if k is FOUR else k
    _regular("k_regular", n, k)
    return list(nx.circulant_graph(n, [*range(1, k // 2 + 1), *([n // 2] if k % 2 else [])]).edges)


def random_regular(n: int, k: int, *, rng: Random) -> Iterable[tuple[int, int]]:
    """Drawn among the graphs in which each node has k neighbours."""
    _regular("random_regular", n, k)
    sparse = min(k, n - 1 - k)  # the complement of a dense one is drawn sooner

    def draw() -> nx.Graph:
        graph = nx.random_regular_graph(sparse, n, seed=rng) if sparse else nx.empty_graph(n)
        return graph if sparse == k else nx.complement(graph)

    return _drawn(draw, f"random_regular(k={k}) of {n} nodes", "take k >= 3")


def erdos_renyi(n: int, p: float, *, rng: Random) -> Iterable[tuple[int, int]]:
    """Each pair with probability p."""
    if not 0 < p <= 1:
        raise SpecError(f"erdos_renyi needs 0 < p <= 1, got {p}")
    _few(int(p * n * (n - 1) / 2), f"erdos_renyi(p={p}) of {n} nodes")
    advice = f"p above ln(n)/n = {math.log(n) / n:.2g} connects most"
    return _drawn(lambda: nx.fast_gnp_random_graph(n, p, seed=rng), f"erdos_renyi(p={p}) of {n} nodes", advice)


def small_world(n: int, k: int, beta: float, *, rng: Random) -> Iterable[tuple[int, int]]:
    """Watts and Strogatz: a circle, each with the k nearest, and each edge moved with probability beta."""
    if not (2 <= k < n and k % 2 == 0 and 0 <= beta <= 1):
        raise SpecError(f"small_world of {n} nodes needs an even K, 2 <= K < {n}, and 0 <= beta <= 1, got {k}, {beta}")
    _few(n * k // 2, f"small_world of {n} nodes")
    return _drawn(
        lambda: nx.watts_strogatz_graph(n, k, beta, seed=rng), f"small_world(k={k}) of {n} nodes", "take k >= 4"
    )


def torus(n: int, rows: int = 0) -> Iterable[tuple[int, int]]:
    """Rows x columns, the borders joined; as square as n allows, if the rows are not given."""
    return _lattice("torus", n, rows, True)


def grid(n: int, rows: int = 0) -> Iterable[tuple[int, int]]:
    """Rows x columns, with borders."""
    return _lattice("grid", n, rows, False)


def two_worlds(n: int, m: int = 0, h: int = 1) -> Iterable[tuple[int, int]]:
    """Two full graphs of m nodes each; each node also has h links into the other."""
    m = m or n // 2
    if 2 * m != n or not 1 <= h <= m:
        raise SpecError(f"two_worlds(m={m}, h={h}) has n = {2 * m} nodes and needs 1 <= h <= m, got n = {n}")
    _few(m * (m - 1 + h), f"two_worlds of {n} nodes")
    within = [(base + a, base + b) for base in (0, m) for a, b in combinations(range(m), 2)]
    return [*within, *((a, m + (a + step) % m) for a in range(m) for step in range(h))]


def clusters(n: int, sizes: Any, links: int = 1) -> Iterable[tuple[int, int]]:
    """Full graphs of these sizes ("4+4+2") in a circle, each joined to the next by `links` edges."""
    try:
        counts = [int(size) for size in (str(sizes).split("+") if isinstance(sizes, str | int) else sizes)]
    except (TypeError, ValueError):
        raise SpecError(f"clusters: sizes are numbers such as 4+4+2, got {sizes!r}") from None
    if sum(counts) != n or len(counts) < 2 or min(counts) < 1:
        raise SpecError(f"clusters: two or more sizes >= 1 that sum to n = {n}, got {counts}, sum {sum(counts)}")
    starts = [sum(counts[:k]) for k in range(len(counts))]
    pairs = [(k, (k + 1) % len(counts)) for k in range(len(counts) if len(counts) > 2 else 1)]
    most = min(min(counts[a], counts[b]) for a, b in pairs)
    if not 1 <= links <= most:
        raise SpecError(f"clusters: links is 1 to {most}, the smallest size, got {links}")
    _few(sum(size * (size - 1) // 2 + links for size in counts), f"clusters of {n} nodes")
    within = [(start + a, start + b) for start, size in zip(starts, counts, strict=True)
              for a, b in combinations(range(size), 2)]  # fmt: skip
    return [*within, *((starts[a] + counts[a] - 1 - k, starts[b] + k) for a, b in pairs for k in range(links))]


NAMED: dict[str, Callable[..., Iterable[tuple[int, int]]]] = {
    function.__name__: function
    for function in (ring, line, star, full, k_regular, random_regular, erdos_renyi, small_world, torus, grid,
                     two_worlds, clusters)
}  # fmt: skip
ALIASES = {"complete": "full", "mesh": "full", "path": "line", "watts_strogatz": "small_world", "gnp": "erdos_renyi"}
SPEC = re.compile(r"\s*(?P<name>[A-Za-z_0-9-]+)\s*(?::(?P<bare>[^()]*)|\((?P<called>[^()]*)\))?\s*")


def read(spec: str, nodes: tuple[Node, ...], seed: int) -> Topology | Varying:
    """The graph of "name", "name:4", "name:4,0.1" or "name(k=4, beta=0.1)"; SpecError for what does not read."""
    match = SPEC.fullmatch(spec[:1000])
    name = match["name"].lower().replace("-", "_") if match else ""
    name = ALIASES.get(name, name)
    if match is None or name not in NAMED.keys() | CHANGING.keys():
        near = did_you_mean(name, [*NAMED, *ALIASES, *CHANGING])
        raise SpecError(f"no graph {spec[:60]!r}; {near if near.startswith('did') else ''} {HINT}".replace(";  ", "; "))
    arguments = (match["bare"] if match["bare"] is not None else match["called"]) or ""
    if name in CHANGING:
        changing = CHANGING[name]
        return changing(nodes, **arguments_of(spec, changing, arguments, 1), seed=seed)
    function = NAMED[name]
    values = arguments_of(spec, function, arguments, 1)
    if "rng" in inspect.signature(function).parameters:
        values["rng"] = Random(f"{seed}/{name}")  # a str seeds by its digest: equal on every machine
    edges = tuple((nodes[a], nodes[b]) for a, b in function(len(nodes), **values))
    return Topology(nodes, edges)


def arguments_of(spec: str, function: Callable[..., Any], text: str, skip: int) -> dict[str, Any]:
    """The parameters that a spec gives to a function, by name; keyword-only ones are not for specs."""
    known = {
        each.name: each
        for each in list(inspect.signature(function, eval_str=True).parameters.values())[skip:]
        if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }
    values: dict[str, Any] = {}
    for place, part in enumerate(text.split(",") if text.strip() else []):
        key, equals, value = part.partition("=")
        name = key.strip() if equals else [*known, ""][min(place, len(known))]
        read_value = literal((value if equals else key).strip())
        annotation = known[name].annotation if name in known else None
        fits = annotation is Any or type(read_value) is annotation or (annotation is float and type(read_value) is int)
        if name not in known or name in values or not fits:
            takes = ", ".join(f"{k}: {p.annotation.__name__}" for k, p in known.items()) or "nothing"
            raise SpecError(f"graph {spec[:60]!r}: cannot use {part.strip()[:30]!r}, it takes {takes}; {HINT}")
        values[name] = read_value
    missing = [name for name, each in known.items() if each.default is each.empty and name not in values]
    if missing:
        raise SpecError(f"graph {spec[:60]!r} needs {', '.join(missing)}; {HINT}")
    return values


def _regular(name: str, n: int, k: int) -> None:
    if n == 2 and k == 1:
        return
    if not 2 <= k < n:
        raise SpecError(f"{name}:K of {n} nodes needs 2 <= K < {n}, got {k}")
    if n * k % 2:
        raise SpecError(
            f"{name}:K needs n * K even: n * K = {n} * {k} = {n * k}; try k_regular:{k - 1} or one node more"
        )
    _few(n * k // 2, f"{name}:{k} of {n} nodes")


def _few(edges: int, what: str) -> None:
    if edges > MOST_EDGES:
        raise SpecError(f"{what} has {edges} edges, at most {MOST_EDGES} are allowed: take a sparser graph")


def _drawn(draw: Callable[[], nx.Graph], what: str, advice: str) -> list[tuple[int, int]]:
    for _ in range(TRIES):
        if nx.is_connected(graph := draw()):
            return list(graph.edges)
    raise SpecError(f"{what} was not connected in {TRIES} tries; {advice}")


def _lattice(name: str, n: int, rows: int, periodic: bool) -> Iterable[tuple[int, int]]:
    rows = rows or max(each for each in range(1, math.isqrt(n) + 1) if n % each == 0)
    if rows < 1 or n % rows or ((rows == 1 or rows == n) and n > 3):
        raise SpecError(f"{name}: n = rows * columns with both >= 2, got n = {n} and {rows} rows")
    columns = n // rows
    steps = [(row, column, row + down, column + right) for row in range(rows) for column in range(columns)
             for down, right in ((0, 1), (1, 0))]  # fmt: skip
    inside = (s for s in steps if periodic or (s[2] < rows and s[3] < columns))
    pairs = ((a * columns + b, c % rows * columns + d % columns) for a, b, c, d in inside)
    return {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}
