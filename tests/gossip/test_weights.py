"""Mixing weights, and what is known of the graphs: mixing contracts at |lambda2(W)|."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

import byzflow
from byzflow.errors import SpecError
from byzflow.gossip.analysis import analyse, lambda2, mu2
from byzflow.gossip.topology import Topology
from byzflow.gossip.weights import Weights, given, metropolis_hastings, self_weight, uniform
from tests.gossip.test_topology import read

GRAPHS = ["ring", "line", "star", "full", "k_regular:4", "small_world:4,0.2", "torus", "erdos_renyi:0.4"]


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("spec", GRAPHS)
def test_mixing_contracts_at_lambda2(spec: str, n: int) -> None:
    """By the rule `gossip` itself, node by node; the slowest direction is the only one that is left after a while."""
    graph = read(spec, n)
    w = metropolis_hastings(graph)
    rate = lambda2(w)
    values, vectors = np.linalg.eigh(w.matrix)
    slowest = vectors[:, [np.argsort(np.abs(values))[-2]]]
    x = torch.from_numpy(np.concatenate([slowest, np.random.default_rng(0).normal(size=(n, 1)) * 1e-3], axis=1))
    rule = byzflow.parse("gossip")
    places = [[graph.place(j) for j in (i, *graph.in_neighbours(i))] for i in graph.nodes]
    distances = []
    for _ in range(6):
        distances.append(float((x - x.mean(0)).norm()))
        x = torch.stack([rule(x[places[k]], weights=w.row(i)) for k, i in enumerate(graph.nodes)])
    if spec == "full":
        assert rate < 1e-9
        assert distances[1] < 1e-12
    else:
        assert (distances[5] / distances[0]) ** (1 / 5) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("spec", GRAPHS)
@pytest.mark.parametrize(
    "make", [uniform, metropolis_hastings, lambda g: self_weight(g, 0.3), lambda g: metropolis_hastings(g, 2)]
)
def test_rows_sum_to_one(spec: str, make: Any) -> None:
    w = make(read(spec, 12))
    np.testing.assert_allclose(w.matrix.sum(1), 1, rtol=1e-12)
    assert w.matrix.dtype == np.float64
    assert (w.matrix >= 0).all()
    assert w.symmetric == np.allclose(w.matrix, w.matrix.T)
    assert w.doubly_stochastic == np.allclose(w.matrix.sum(0), 1)


def test_the_definitions() -> None:
    star = read("star", 4)
    assert metropolis_hastings(star).row(0).tolist() == [0.25] * 4
    assert metropolis_hastings(star).row(1).tolist() == [0.75, 0.25]
    assert metropolis_hastings(star, f=2).of[1] == {0: 1 / 6}
    assert uniform(star).row(1).tolist() == [0.5, 0.5]
    assert self_weight(star, 0.4).row(0) == pytest.approx([0.4, 0.2, 0.2, 0.2])
    with pytest.raises(SpecError, match="must be symmetric"):
        uniform(star).checked(symmetric=True)
    with pytest.raises(SpecError, match="doubly stochastic: take"):
        uniform(star).checked(doubly_stochastic=True)
    assert metropolis_hastings(star).checked(symmetric=True, doubly_stochastic=True)
    w = np.array([[0.5, 0.5, 0], [0.5, 0.25, 0.25], [0, 0.25, 0.75]])
    np.testing.assert_allclose(given(read(w)).matrix, w)


def test_weights_that_are_refused() -> None:
    line = read("line", 3)
    for of, message in [
        ({0: {1: 0.5}, 1: {0: 0.5, 2: 0.6}, 2: {1: 0.5}}, "sum to 1.1"),
        ({0: {1: 0.5}, 1: {0: 0.5}, 2: {1: 0.5}}, "each of its 2 neighbours"),
        ({0: {2: 0.5}, 1: {0: 0.5, 2: 0.5}, 2: {1: 0.5}}, "each of its 1 neighbours"),
        ({0: {1: -0.5}, 1: {0: 0.5, 2: 0.5}, 2: {1: 0.5}}, "finite and >= 0"),
        ({0: {1: math.nan}, 1: {0: 0.5, 2: 0.5}, 2: {1: 0.5}}, "finite and >= 0"),
    ]:
        with pytest.raises(SpecError, match=message):
            Weights(line, of)  # type: ignore[arg-type]
    for wrong in (lambda: self_weight(line, 1.5), lambda: metropolis_hastings(line, -1), lambda: given(line)):
        with pytest.raises(SpecError):
            wrong()
    with pytest.raises(SpecError, match=r"use row\(node\)"):
        _ = metropolis_hastings(read("ring", 5001)).matrix


def test_a_ring_of_ten_thousand_has_weights() -> None:
    assert metropolis_hastings(read("ring", 10_000)).row(9_999).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("n", [5, 12])
def test_known_values(n: int) -> None:
    ring = read("ring", n)
    report = analyse(ring)
    assert report.mu2 == pytest.approx((2 - 2 * math.cos(2 * math.pi / n)) / 3)
    assert report.lambda2 == pytest.approx((1 + 2 * math.cos(2 * math.pi / n)) / 3)
    assert report.spectral_gap == pytest.approx(1 - (1 + 2 * math.cos(2 * math.pi / n)) / 3)
    assert (report.vertex_connectivity, report.components, report.degrees) == (2, (n,), (2, 2))
    full = analyse(read("full", n), f=2)
    assert full.lambda2 == pytest.approx(0, abs=1e-12)
    assert full.mu2 == pytest.approx(1)
    assert full.vertex_connectivity == n - 1
    assert [*full.byzantine_weight.values()] == pytest.approx([2 / n] * n)
    star = analyse(read("star", n), byzantine=[0])
    assert star.vertex_connectivity == 1
    assert star.byzantine_weight == {node: pytest.approx(1 / n) for node in range(1, n)}
    assert star.mu2 == pytest.approx(0)  # without its centre nothing holds it together
    assert star.betweenness is not None
    assert star.betweenness[0] == pytest.approx(1)


@pytest.mark.parametrize("f", [1, 3])
def test_two_worlds_of_the_averaging_test(f: int) -> None:
    graph = read("two_worlds(m=13, h=8)", 26)
    w = metropolis_hastings(graph, f)
    assert mu2(w, graph.nodes) == pytest.approx(16 / (21 + f))
    assert analyse(graph, f, weights=w).byzantine_weight[0] == pytest.approx(f / (21 + f))


def test_the_report_is_plain_data() -> None:
    report = analyse(read("two_worlds(m=4)", [f"n{k}" for k in range(8)]), byzantine=["n0", "n1"])
    assert json.loads(json.dumps(report.as_dict()))["byzantine_weight"]["n2"] > 0
    assert set(report.weakest[:2]) == {"n2", "n3"}  # both liars among their four neighbours
    assert any("mu2" in line for line in report.lines())
    large = analyse(read("ring", 3000), f=1)
    assert (large.lambda2, large.mu2, large.vertex_connectivity, large.betweenness) == (None,) * 4
    assert "too many nodes" in "\n".join(large.lines())
    split = analyse(Topology(tuple(range(5)), ((0, 1), (2, 3))))
    assert split.components == (2, 2, 1)
    assert split.lambda2 == pytest.approx(1)
    for wrong in ({"f": -1}, {"f": 1, "byzantine": [0]}, {"byzantine": range(5)}, {"byzantine": [9]}):
        with pytest.raises(SpecError):
            analyse(Topology(tuple(range(5)), ((0, 1), (2, 3))), **wrong)
