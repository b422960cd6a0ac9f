"""Graphs: what they are, what is refused and why."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from byzflow.errors import SpecError
from byzflow.gossip.topology import Source, Topology, topology
from byzflow.gossip.varying import Varying


def read(spec: Source, nodes: Any = None, seed: int = 0) -> Topology:
    graph = topology(spec, nodes, seed)
    assert isinstance(graph, Topology)
    return graph


def changing(spec: Source, nodes: Any, seed: int = 0) -> Varying:
    graph = topology(spec, nodes, seed)
    assert isinstance(graph, Varying)
    return graph


@pytest.mark.parametrize(
    ("spec", "n", "degrees", "edges"),
    [
        ("ring", 2, {1}, 1),
        ("ring", 3, {2}, 3),
        ("ring", 100, {2}, 100),
        ("line", 10, {1, 2}, 9),
        ("star", 2, {1}, 1),
        ("star", 10, {1, 9}, 9),
        ("mesh", 10, {9}, 45),
        ("complete", 2, {1}, 1),
        ("k_regular:4", 10, {4}, 20),
        ("k-regular(k=3)", 8, {3}, 12),
        ("k_regular:4", 5, {4}, 10),
        ("random_regular:3", 10, {3}, 15),
        ("random_regular(k=9)", 10, {9}, 45),
        ("random_regular(k=8)", 10, {8}, 40),
        ("small_world(k=4, beta=0)", 10, {4}, 20),
        ("torus", 9, {4}, 18),
        ("torus(rows=2)", 10, {3}, 15),
        ("grid", 9, {2, 3, 4}, 12),
        ("two_worlds(m=13, h=8)", 26, {20}, 2 * 78 + 104),
        ("clusters(sizes=4+4+2, links=2)", 10, {3, 4}, 6 + 6 + 1 + 6),
        ("erdos_renyi:1", 5, {4}, 10),
    ],
)
def test_named_graphs(spec: str, n: int, degrees: set[int], edges: int) -> None:
    graph = read(spec, n)
    assert {graph.degree(node) for node in graph.nodes} == degrees
    assert (len(graph), len(graph.edges)) == (n, edges)
    assert graph.connected
    assert not graph.adjacency.diagonal().any()
    assert (graph.adjacency == graph.adjacency.T).all()


@pytest.mark.parametrize("spec", ["ring", "k_regular:4", "star", "random_regular:4"])
def test_ten_thousand_nodes(spec: str) -> None:
    start = time.process_time()
    graph = read(spec, 10_000)
    assert len(graph.neighbours(7)) in (1, 2, 4)
    assert time.process_time() - start < 5  # seconds; 0.3 were measured


REFUSED: list[tuple[Any, Any, str]] = [
    ("ring", 1, "2 to 10000 nodes, got 1"),
    ("ring", 10_001, "got 10001"),
    ("ring", None, "how many nodes"),
    ("full", 10_000, "49995000 edges, at most 2000000"),
    ("two_worlds", 10_000, "at most 2000000"),
    ("clusters(sizes=9000+1000)", 10_000, "at most 2000000"),
    ("k_regular:3", 9, r"n \* K even: n \* K = 9 \* 3 = 27"),
    ("k_regular:8", 8, "2 <= K < 8, got 8"),  # with 2k >= n a peer's ring has edges twice
    ("random_regular:9", 9, "2 <= K < 9, got 9"),
    ("small_world(k=3, beta=0.1)", 9, "even K"),
    ("small_world(k=4)", 9, "needs beta"),
    ("erdos_renyi:0", 9, "0 < p <= 1"),
    ("erdos_renyi:0.001", 50, "not connected in 100 tries; p above"),
    ("torus", 7, "n = 7 and 1 rows"),
    ("two_worlds(m=4)", 9, "has n = 8 nodes"),
    ("two_worlds(h=5)", 8, "1 <= h <= m"),
    ("clusters(sizes=3+3)", 7, "sum to n = 7"),
    ("clusters(sizes=3+x)", 7, "numbers such as"),
    ("clusters(sizes=3+3, links=4)", 6, "links is 1 to 3"),
    ("rings", 4, "did you mean ring"),
    ("k_regular:4,4", 9, "cannot use '4'"),
    ("k_regular(j=4)", 9, "it takes k: int"),
    ("ring", ["a", "b", "a"], "two nodes have the id 'a'"),
    ("ring", ["a", 1.5], "str or an int, got 1.5"),
    (np.ones((2, 3)), None, r"square, got shape \(2, 3\)"),
    (np.triu(np.ones((3, 3)), 1), None, r"not symmetric: \[0, 1\] is 1, \[1, 0\] is 0"),
    (np.ones((3, 3)), None, "3 self loops, the first at 0"),
    (np.full((3, 3), np.nan), None, "NaN or Inf"),
    (np.array([["a", "b"], ["b", "a"]]), None, "holds numbers"),
    (np.zeros((3, 3)), None, "not connected: 3 parts, the smallest of 1"),
    (np.ones((3, 3)) - np.eye(3), 4, "3 rows, and there are 4 nodes"),
    (-(np.ones((3, 3)) - np.eye(3)), None, "weights of edges are finite and >= 0"),
    ([("a", "b"), ("b", "b")], None, "edge 1 joins node 'b' to itself"),
    ([("a", "b"), ("b", "a")], None, "edges 0 and 1 both join"),
    ([("a", "b"), ("b", "z")], ["a", "b"], "no node 'z' in a graph of 2"),
    ([("a", "b", 1), ("b", "c")], None, "1 of 2 edges have weights"),
    ([("a", "b", "x")], None, "not a number"),
    ([("a",)], None, "edge 0 is"),
    ([(0, 1), (2, 3)], None, "2 parts, the smallest of 2"),
    (nx.MultiGraph([(0, 1), (0, 1)]), None, "each edge once"),
    (nx.Graph([(0, 1), (1, 1)]), None, "joins node 1 to itself"),
    (nx.DiGraph([(0, 1)]), None, "not connected"),
    (Path("no such file"), None, "cannot be read"),
    (lambda t: "ring", None, "how many nodes"),
    (3.5, 4, "got float"),
]


@pytest.mark.parametrize(("spec", "nodes", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_is_refused_says_why_in_one_line(spec: Any, nodes: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as refused:
        topology(spec, nodes)
    assert "\n" not in str(refused.value)


def test_an_unknown_node_is_an_error_with_a_name() -> None:
    graph = read("ring", ["a", "b", "c"])
    for call in (graph.neighbours, graph.in_neighbours, graph.degree, graph.place):
        with pytest.raises(SpecError, match="no node 'd' in a graph of 3: its nodes are 'a', 'b', 'c'"):
            call("d")
    assert "a" in graph
    assert "d" not in graph


def test_equal_content_is_equal_whatever_the_order() -> None:
    one, other = read([(0, 1), (1, 2)], 3), read([(2, 1), (1, 0)], 3)
    assert one == other
    assert hash(one) == hash(other)
    assert one != one.with_edges(one.edges)
    assert one != read("ring", 3)
    assert read("line", 3) == one
    assert read("random_regular:4", 50, 1) == read("random_regular:4", 50, 1) != read("random_regular:4", 50, 2)


def test_a_change_is_the_next_version() -> None:
    graph = read("line", ["a", "b", "c"])
    ring = graph.changed(add=[("c", "a")])
    assert (ring.version, ring.neighbours("a")) == (1, ("b", "c"))
    assert graph.neighbours("a") == ("b",)
    back = ring.changed(remove=[("a", "c")])
    assert (back.version, back.edges) == (2, graph.edges)
    assert not back.changed(remove=[("b", "a")]).connected
    with pytest.raises(SpecError, match="no edge joins 'a' and 'c'"):
        graph.changed(remove=[("a", "c")])
    with pytest.raises(SpecError, match="both join"):
        graph.changed(add=[("b", "a")])
    more = graph.with_edges([*graph.edges, ("c", "d")], nodes=["a", "b", "c", "d"])
    assert (len(more), more.version) == (4, 1)


def test_directed_edges_have_a_sender_and_a_receiver() -> None:
    graph = read(nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a")]))
    assert graph.neighbours("a") == ("b",)
    assert graph.in_neighbours("a") == ("c",)
    assert graph.adjacency.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert graph.changed(remove=[("a", "b")], add=[("b", "a")]).in_neighbours("a") == ("b", "c")


def test_sources_of_ones_own(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    line = read([("a", "b"), ("b", "c")])
    assert read(nx.path_graph(names)) == line
    assert read(nx.to_numpy_array(nx.path_graph(names)), names) == line
    assert read(line.graph()) == line == read(line)
    file = tmp_path / "edges.txt"
    file.write_text("a b  # the first\n\nb c\n")
    assert read(file) == line
    file.write_text("0 1 0.5\n1 2 0.25\n")
    assert read(file) == read([(0, 1, 0.5), (1, 2, 0.25)])
    assert read(file).weights == (0.5, 0.25)
    file.write_text("0 1\n1\n")
    with pytest.raises(SpecError, match="line 2: '1' is not"):
        read(file)
    w = np.array([[0.5, 0.5, 0], [0.5, 0.25, 0.25], [0, 0.25, 0.75]])
    assert read(w, names).weights == (0.5, 0.25)
    assert read(nx.grid_2d_graph(2, 2)).nodes == (0, 1, 2, 3)


def test_a_function_of_the_round() -> None:
    graph = changing(lambda t: "star" if t % 2 else "ring", ["a", "b", "c", "d"])
    assert [graph.at(t).degree("a") for t in range(3)] == [2, 3, 2]
    assert [graph.at(t).version for t in range(3)] == [0, 1, 2]
    assert graph.at(5) == graph.at(5)
    with pytest.raises(SpecError, match=">= 0, got -1"):
        graph.at(-1)
    with pytest.raises(SpecError, match="same 3 nodes"):
        changing(lambda t: Topology(("a", "b"), (("a", "b"),)), ["a", "b", "c"]).at(0)
    with pytest.raises(SpecError, match="4 nodes, not 3"):
        changing(lambda t: nx.path_graph(4), ["a", "b", "c"]).at(0)


@pytest.mark.parametrize("spec", ["random_regular_each:4", "random_matchings", "one_peer_exponential", "exponential"])
@pytest.mark.parametrize("n", [8, 9, 64])
def test_graphs_of_each_round_come_from_the_seed_alone(spec: str, n: int) -> None:
    if spec == "random_regular_each:4" or n != 9:
        graph = changing(spec, n, 3)
        again = changing(spec, n, 3)
        assert [graph.at(t) for t in (4, 2)] == [again.at(4), again.at(2)]
    graph = changing(spec, n)
    degrees = [graph.at(t).degree(node) for t in range(6) for node in range(n)]
    expected = {"random_regular_each:4": 4, "exponential": (n - 1).bit_length()}.get(spec, 1)
    assert set(degrees) == ({0, 1} if spec == "random_matchings" and n % 2 else {expected})
    if spec.startswith("random"):
        assert graph.at(0).edges != graph.at(1).edges
        assert graph.at(0) != changing(spec, n, 1).at(0)


@pytest.mark.parametrize("n", [2, 8, 64])
def test_one_peer_exponential_agrees_after_log_n_rounds(n: int) -> None:
    graph = changing("one_peer_exponential", n)
    x = np.arange(float(n))
    for t in range(n.bit_length() - 1):
        x = (x + graph.at(t).adjacency.T @ x) / 2
    np.testing.assert_allclose(x, (n - 1) / 2, rtol=1e-12)
