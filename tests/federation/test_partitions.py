"""Every sample goes to one node at most, every node gets one at least, and the skew is the one asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from byzflow.errors import DataError, SpecError
from byzflow.federation.partitions import hold_out, partition, report

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200))
ALL = [
    ("iid", {}),
    ("label_skew", {"share": 0.1}),
    ("label_skew", {"share": 0.9}),
    ("label_skew", {"per_node": 1}),
    ("label_skew", {"per_node": 3}),
    ("dirichlet", {"alpha": 0.1}),
    ("dirichlet", {"alpha": 1e-4}),
    ("dirichlet", {"alpha": 100.0}),
    ("quantity_skew", {"alpha": 0.1}),
    ("quantity_skew", {"alpha": 1e-9}),
]


@pytest.mark.parametrize(("name", "options"), ALL)
@pytest.mark.parametrize("nodes", [1, 3, 10, 64])
def test_every_partition(name: str, options: dict[str, float], nodes: int) -> None:
    parts = partition(name, LABELS, nodes, seed=5, **options)
    assert len(parts) == nodes
    assert all(len(part) for part in parts)
    dealt = np.concatenate(parts)
    assert len(np.unique(dealt)) == len(dealt)
    assert dealt.min() >= 0
    assert dealt.max() < len(LABELS)
    if name != "label_skew":
        assert len(dealt) == len(LABELS)
    again = partition(name, torch.from_numpy(LABELS), nodes, seed=5, **options)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    if nodes > 1:
        other = partition(name, LABELS, nodes, seed=6, **options)
        assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


@pytest.mark.parametrize("nodes", [3, 10, 25])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_a_share_of_each_node_has_one_label(share: float, nodes: int) -> None:
    for node, counts in enumerate(report(partition("label_skew", LABELS, nodes, share=share), LABELS).counts):
        assert sum(counts) >= 50
        assert counts[node % 10] == pytest.approx(share * sum(counts), abs=0.51)


def test_a_node_sees_so_many_labels_only() -> None:
    found = report(partition("label-skew", LABELS, 10, per_node=2), LABELS)
    assert [sum(count > 0 for count in each) for each in found.counts] == [2] * 10
    assert found.unused == 0
    assert {sum(each) for each in found.counts} == {200}


def test_sizes_differ_by_one_at_most_or_very_much() -> None:
    assert {len(part) for part in partition("iid", LABELS, 7)} == {285, 286}
    sizes = [len(part) for part in partition("quantity_skew", LABELS, 20, alpha=0.2)]
    assert max(sizes) > 10 * np.median(sizes)


def test_small_alpha_differs_more_than_large() -> None:
    def largest(alpha: float) -> float:
        counts = np.array(report(partition("dirichlet", LABELS, 10, alpha=alpha), LABELS).counts)
        return float((counts.max(1) / counts.sum(1)).mean())

    assert largest(0.05) > 0.5 > 0.2 > largest(1000.0)


@pytest.mark.parametrize("alpha", [1e15, 1e308, 1.7e308])
def test_a_huge_alpha_makes_all_nodes_alike(alpha: float) -> None:
    for name in ("dirichlet", "quantity_skew"):
        sizes = [len(part) for part in partition(name, LABELS, 5, alpha=alpha)]
        assert max(sizes) - min(sizes) <= 10


def test_as_many_nodes_as_samples() -> None:
    for name, options in ALL:
        if name != "label_skew":
            assert [len(part) for part in partition(name, LABELS[:30], 30, **options)] == [1] * 30


@pytest.mark.parametrize(
    ("name", "nodes", "options", "error", "message"),
    [
        ("iid", 0, {}, DataError, "2000 samples cannot be dealt out to 0 nodes"),
        ("iid", 2001, {}, DataError, "2000 samples cannot be dealt out to 2001 nodes"),
        ("dirichelt", 3, {}, SpecError, "did you mean dirichlet"),
        ("dirichlet", 3, {"beta": 1.0}, SpecError, "unknown option 'beta'"),
        ("dirichlet", 3, {"alpha": 0.0}, SpecError, "alpha must be a finite number > 0, got 0.0"),
        ("quantity_skew", 3, {"alpha": float("nan")}, SpecError, "got nan"),
        ("label_skew", 3, {}, SpecError, "one of them"),
        ("label_skew", 3, {"share": 1.5}, SpecError, "share must be > 0 and <= 1, got 1.5"),
        ("label_skew", 3, {"per_node": 11}, SpecError, "1 to 10 labels, got 11"),
    ],
)
def test_mistakes_are_named(
    name: str, nodes: int, options: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        partition(name, LABELS, nodes, **options)


def test_a_node_without_samples_is_named() -> None:
    with pytest.raises(DataError, match=r"label_skew leaves 3 of 3 nodes, node 0 first, without a sample of 7"):
        partition("label_skew", torch.tensor([0, 1, 1, 1, 1, 1, 1]), 3, share=0.5)  # nodes 0 and 2 both prefer label 0
    with pytest.raises(DataError, match=r"label_skew leaves 1 of 3 nodes"):
        partition("label_skew", torch.tensor([0, 1, 1, 1, 1, 1, 1]), 3, per_node=1, seed=1)


def test_each_node_has_a_test_set_of_its_own() -> None:
    parts = [*partition("label_skew", LABELS, 10, per_node=2), np.array([5]), np.array([6, 7])]
    kept, held = hold_out(parts, 0.2, seed=1)
    for part, train, test in zip(parts, kept, held, strict=True):
        assert np.array_equal(np.sort(np.concatenate([train, test])), part)
    assert [len(each) for each in held] == [40] * 10 + [0, 1]
    assert set(LABELS[held[0]]) == set(LABELS[parts[0]])
    with pytest.raises(SpecError, match="between 0 and 1"):
        hold_out(parts, 1.0)


def test_the_report_counts() -> None:
    found = report([np.array([0, 1]), np.array([3])], torch.tensor([0, 1, 1, 2]), classes=4)
    assert found.as_dict() == {"counts": [[1, 1, 0, 0], [0, 0, 1, 0]], "unused": 1}
    assert found.lines() == [
        "node  0  1  2  3  all",
        "   0  1  1  0  0    2",
        "   1  0  0  1  0    1",
        "1 samples unused",
    ]
