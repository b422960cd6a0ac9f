"""Exact clusterings of a few points: the n senders, whatever their dimension."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

STEPS = 300  # of an iteration at most
ROUNDING = 1e-12  # of means of coordinates that are shares or cosines


def average_linkage(distances: Tensor, clusters: int) -> list[list[int]]:
    """Agglomerative clustering of n points by mean distance (UPGMA); of equal distances the first pair merges."""
    groups = [[i] for i in range(len(distances))]
    between = distances.clone().fill_diagonal_(torch.inf)
    while len(groups) > clusters:
        i, j = sorted(divmod(int(between.argmin()), len(groups)))
        a, b = len(groups[i]), len(groups[j])
        merged = (a * between[i] + b * between[j]) / (a + b)
        merged[i] = torch.inf
        between[i, :] = between[:, i] = merged
        left = [k for k in range(len(groups)) if k != j]
        between = between[left][:, left]
        groups[i] += groups.pop(j)
    return [sorted(group) for group in groups]


def smallest_component(distances: Tensor, size: int) -> Tensor:
    """(n,) bool: the tightest single-linkage cluster of at least `size` of n points, size > n/2.

    The points that are connected by steps of at most t, for the smallest t at which `size` of them are. This is what
    HDBSCAN with min_cluster_size > n/2, min_samples = 1 and allow_single_cluster finds.
    """
    n = len(distances)
    tree = torch.zeros(n, dtype=torch.long)  # nearest point already connected
    reach = distances[0].clone()
    outside = torch.ones(n, dtype=torch.bool)
    outside[0] = False
    edges = []
    for _ in range(n - 1):  # Prim's minimum spanning tree
        new = int(torch.where(outside, reach, torch.inf).argmin())
        new = new if outside[new] else int(outside.nonzero()[0])  # everything left is infinitely far
        edges.append((float(reach[new]), new, int(tree[new])))
        outside[new] = False
        closer = outside & (distances[new] < reach)
        reach, tree = torch.where(closer, distances[new], reach), torch.where(closer, new, tree)
    label = torch.arange(n)
    edges.sort()
    for k, (length, i, j) in enumerate(edges):
        label = torch.where(label == label[j], label[i], label)
        if k + 1 < len(edges) and edges[k + 1][0] == length:
            continue
        counts = label.bincount(minlength=n)
        if int(counts.max()) >= size:
            return label == counts.argmax()
    return label == label[0]


def mean_shift(points: Tensor, quantile: float = 0.5) -> Tensor:
    """(n,): the cluster of each of n points (n, k) by mean shift with a flat kernel, 0 the densest; -1 for none.

    The bandwidth is the mean distance of a point to the nearest `quantile` of all points, itself counted.
    """
    n = len(points)
    width = float(_between(points, points).sort(1).values[:, max(1, int(quantile * n)) - 1].mean()) + ROUNDING
    centers = points
    for _ in range(STEPS):
        near = (_between(centers, points) <= width).to(points.dtype)
        moved = near @ points / near.sum(1, keepdim=True).clamp(min=1)
        step = float(torch.linalg.vector_norm(moved - centers, dim=1).max())
        centers = moved
        if step <= 1e-3 * width:
            break
    counts = (_between(centers, points) <= width).sum(1)
    order = np.lexsort([*centers.T.numpy()[::-1], counts.numpy()])[::-1].copy()  # by count, then by place
    kept: list[int] = []
    for i in order.tolist():
        if not kept or float(_between(centers[[i]], centers[kept]).min()) > width:
            kept.append(i)
    distance, label = _between(points, centers[kept]).min(1)
    return torch.where(distance <= width, label, -1)


def two_means(points: Tensor) -> Tensor:
    """(n,): 0 or 1 for each of n points (n, k), by Lloyd's iteration from the two points farthest apart."""
    i, j = divmod(int(_between(points, points).argmax()), len(points))
    centers, label = points[[i, j]], torch.full((len(points),), -1)
    for _ in range(STEPS):
        before, label = label, _between(points, centers).argmin(1)
        if torch.equal(before, label):
            break
        centers = torch.stack([points[label == k].mean(0) if (label == k).any() else centers[k] for k in (0, 1)])
    return label


def _between(a: Tensor, b: Tensor) -> Tensor:
    """(len(a), len(b)): distances, without the rounding of a matrix product."""
    distances: Tensor = torch.linalg.vector_norm(a[:, None] - b[None, :], dim=2)
    return distances
