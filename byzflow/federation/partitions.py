"""Who holds which samples: seeded ways to deal a data set out to nodes, and a report of what each got."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from byzflow.errors import DataError, SpecError, did_you_mean

Indices = NDArray[np.int64]
"""The sorted numbers of one node's samples."""
LARGEST = 1e300  # alpha: the sum of draws of more overflows, and beyond 1e15 all shares are equal


def partition(name: str, labels: Tensor | Indices, nodes: int, *, seed: int = 0, **options: float) -> list[Indices]:
    """Deal samples with these labels (samples,) out by the partition of this name: each sample to one node at most.

    "iid", "label_skew" (share or labels), "dirichlet" (alpha), "quantity_skew" (alpha). Every node gets a sample.

    Raises SpecError for an unknown name, option or range, DataError if there are too few samples.
    """
    key = name.replace("-", "_").lower()
    if key not in PARTITIONS:
        raise SpecError(f"unknown partition {name!r}; {did_you_mean(name, PARTITIONS)}")
    known = inspect.signature(PARTITIONS[key]).parameters.keys() - {"labels", "nodes", "rng"}
    if unknown := sorted(options.keys() - known):
        raise SpecError(f"partition {name}: unknown option {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
    plain = np.asarray(labels, dtype=np.int64)
    if not 1 <= nodes <= len(plain):
        raise DataError(f"{len(plain)} samples cannot be dealt out to {nodes} nodes: each needs one at least")
    parts = PARTITIONS[key](plain, nodes, np.random.default_rng([seed, 1]), **options)
    if empty := [node for node, part in enumerate(parts) if not len(part)]:
        raise DataError(
            f"partition {name} leaves {len(empty)} of {nodes} nodes, node {empty[0]} first, without a sample of "
            f"{len(plain)}: take fewer nodes or a milder skew"
        )
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


def iid(labels: Indices, nodes: int, rng: np.random.Generator) -> list[Indices]:
    """Shuffled, and cut into parts whose sizes differ by one at most."""
    return np.array_split(rng.permutation(len(labels)), nodes)


def label_skew(
    labels: Indices, nodes: int, rng: np.random.Generator, *, share: float | None = None, per_node: int | None = None
) -> list[Indices]:
    """A `share` of each node's samples has one label, 0.1 to 0.9 usually; or a node sees `per_node` labels only.

    By share, node i prefers label i modulo the labels there are, nodes are equally large, and as large as the rarest
    preferred label allows: what does not fit stays out. By labels, the samples of one are shared evenly by the nodes
    that see it, and labels that nobody sees stay out.
    """
    present = np.unique(labels)
    if (share is None) == (per_node is None):
        raise SpecError("label_skew needs share=, 0 to 1, or per_node=, an int >= 1: one of them")
    if per_node is not None:
        if int(per_node) != per_node or not 1 <= per_node <= len(present):
            raise SpecError(f"label_skew: per_node must be an int, 1 to {len(present)} labels, got {per_node!r}")
        return _few_labels(labels, nodes, rng, rng.permutation(present), int(per_node))
    if share is None or not 0 < share <= 1:
        raise SpecError(f"label_skew: share must be > 0 and <= 1, got {share!r}")
    return _one_label(labels, nodes, rng, present, share)


def dirichlet(labels: Indices, nodes: int, rng: np.random.Generator, *, alpha: float = 0.5) -> list[Indices]:
    """Each label is cut by shares drawn from Dirichlet(alpha, ..., alpha): the smaller alpha, the more nodes differ.

    A node that would get nothing takes one sample from the largest, for a node without data cannot train.
    Hsu et al., 2019, https://arxiv.org/abs/1909.06335
    """
    _positive("dirichlet", alpha)
    parts: list[list[int]] = [[] for _ in range(nodes)]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        cuts = np.cumsum(_shares(rng, nodes, alpha))[:-1] * len(members)
        for part, chunk in zip(parts, np.split(members, cuts.round().astype(int)), strict=True):
            part.extend(chunk.tolist())
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return [np.array(part, dtype=np.int64) for part in parts]


def quantity_skew(labels: Indices, nodes: int, rng: np.random.Generator, *, alpha: float = 0.5) -> list[Indices]:
    """Labels as in `iid`, but sizes drawn from Dirichlet(alpha, ..., alpha), one sample at least."""
    _positive("quantity_skew", alpha)
    cuts = np.cumsum(_shares(rng, nodes, alpha))[:-1] * (len(labels) - nodes)
    return np.split(rng.permutation(len(labels)), cuts.round().astype(int) + np.arange(1, nodes))


PARTITIONS: dict[str, Callable[..., list[Indices]]] = {
    "iid": iid,
    "label_skew": label_skew,
    "dirichlet": dirichlet,
    "quantity_skew": quantity_skew,
}


def hold_out(parts: Sequence[Indices], share: float, *, seed: int = 0) -> tuple[list[Indices], list[Indices]]:
    """A test set for each node, of its own distribution: what each trains on, and the share that it is tested on.

    A node of two samples or more is tested on one at least and trains on one at least; a single sample is trained on.
    """
    if not 0 < share < 1:
        raise SpecError(f"the share held out must be between 0 and 1, got {share!r}")
    kept, held = [], []
    for node, part in enumerate(parts):
        shuffled = np.random.default_rng([seed, 2, node]).permutation(part)
        count = min(max(round(share * len(part)), 1), len(part) - 1)
        kept.append(np.sort(shuffled[count:]))
        held.append(np.sort(shuffled[:count]))
    return kept, held


@dataclass(frozen=True)
class Report:
    """How many samples of each label each node holds, and how many nobody does."""

    counts: tuple[tuple[int, ...], ...]
    """(nodes, labels)."""
    unused: int

    def lines(self) -> list[str]:
        """A table: a line for each node, its samples of each label and in all."""
        if not self.counts:
            return [f"no nodes, {self.unused} samples unused"]
        rows = [("node", *map(str, range(len(self.counts[0]))), "all")]
        rows += [(str(i), *map(str, each), str(sum(each))) for i, each in enumerate(self.counts)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in rows]
        return [*table, *([f"{self.unused} samples unused"] if self.unused else [])]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"counts": [list(each) for each in self.counts], "unused": self.unused}


def report(parts: Sequence[Indices], labels: Tensor | Indices, classes: int | None = None) -> Report:
    """What these parts of samples with these labels hold."""
    plain = np.asarray(labels, dtype=np.int64)
    width = classes if classes is not None else int(plain.max(initial=-1)) + 1
    counts = tuple(tuple(int(c) for c in np.bincount(plain[part], minlength=width)) for part in parts)
    return Report(counts, len(plain) - sum(map(len, parts)))


def _one_label(labels: Indices, nodes: int, rng: np.random.Generator, present: Indices, share: float) -> list[Indices]:
    members = {label: rng.permutation(np.flatnonzero(labels == label)) for label in present}
    prefers = present[np.arange(nodes) % len(present)]
    supply = min(len(members[label]) // int((prefers == label).sum()) for label in present if label in prefers)
    size = min(len(labels) // nodes, int(supply / share))
    own = round(size * share)
    parts = [members[label][i // len(present) * own :][:own] for i, label in enumerate(prefers)]
    rest = rng.permutation(np.setdiff1d(np.arange(len(labels)), np.concatenate(parts)))
    owner = np.full(len(rest), -1)  # nobody
    owner[: nodes * (size - own)] = np.arange(nodes * (size - own)) % nodes
    theirs = np.append(prefers, -1)  # what the owner prefers; nobody is the last
    for p in np.flatnonzero(theirs[owner] == labels[rest]):
        label, node = labels[rest[p]], owner[p]
        if theirs[node] == label:  # not yet swapped: the node has enough of these
            others = np.flatnonzero((labels[rest] != label) & (theirs[owner] != label))
            mutual = others[theirs[owner[others]] == labels[rest[others]]]
            for q in (*mutual[:1], *others[:1])[:1]:
                owner[p], owner[q] = owner[q], owner[p]
    return [np.concatenate([part, rest[owner == i]]) for i, part in enumerate(parts)]


def _few_labels(labels: Indices, nodes: int, rng: np.random.Generator, order: Indices, per_node: int) -> list[Indices]:
    sees = [{order[(i * per_node + k) % len(order)] for k in range(per_node)} for i in range(nodes)]
    parts: list[list[int]] = [[] for _ in range(nodes)]
    for label in order:
        holders = [i for i in range(nodes) if label in sees[i]]
        chunks = np.array_split(rng.permutation(np.flatnonzero(labels == label)), max(1, len(holders)))
        for i, chunk in zip(holders, chunks, strict=False):
            parts[i].extend(chunk.tolist())
    return [np.array(part, dtype=np.int64) for part in parts]


def _shares(rng: np.random.Generator, nodes: int, alpha: float) -> NDArray[np.float64]:
    """(nodes,): they sum to 1; at a tiny alpha, where numpy's draws may all be 0, one node has everything."""
    shares = rng.dirichlet(np.full(nodes, min(alpha, LARGEST)))
    return shares if np.isfinite(shares).all() else np.eye(nodes)[rng.integers(nodes)]


def _positive(name: str, alpha: float) -> None:
    if not 0 < alpha < np.inf:
        raise SpecError(f"{name}: alpha must be a finite number > 0, got {alpha!r}")
