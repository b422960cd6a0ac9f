"""Which share of the processors and GPUs each node gets: a plan that fits, or an error with the numbers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from byzflow.errors import FederationError

SPLITS = ("uniform", "random")
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
UNITS = 10_000  # of a CPU or GPU; Ray counts as finely


@dataclass(frozen=True)
class Bundle:
    """What one node gets: a share of the CPUs, and of one GPU, or several whole ones, by their numbers."""

    cpus: float
    gpus: float = 0.0
    gpu_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Resources:
    """A plan: the broker's CPUs and one bundle a node, together never more than there is."""

    cpus: float
    gpus: int
    broker: float
    bundles: tuple[Bundle, ...]
    strategy: str = "PACK"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def for_ray(self) -> list[dict[str, float]]:
        """Bundles of a Ray placement group: the broker's first, then one a node; node k is built in bundle k + 1."""
        nodes = [{"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {}) for each in self.bundles]
        return [{"CPU": self.broker}, *nodes]


def plan(
    num_nodes: int,
    cpus: float | None = None,
    gpus: int | None = None,
    split: str = "uniform",
    strategy: str = "PACK",
    *,
    cpus_per_node: float | None = None,
    gpus_per_node: float | None = None,
    seed: int = 0,
) -> Resources:
    """Shares for `num_nodes` nodes and a broker.

    Parameters
    ----------
    cpus, gpus : what there is; by default what this process may use.
    split : of the CPUs that the broker leaves: "uniform", or "random" shares, all above 0, drawn by `seed`.
    strategy : whether a cluster puts nodes together or apart, in Ray's words.
    cpus_per_node : CPUs of each node, instead of a split.
    gpus_per_node : of each node: at most 1, a share of one GPU, or a whole number; by default all GPUs are shared out.

    The broker gets a tenth of the CPUs, at most 2. Without a GPU, nodes that ask for one are planned on CPUs, with a
    warning. Raises FederationError, with numbers, for what does not fit.
    """
    cpus = float(len(os.sched_getaffinity(0))) if cpus is None else float(cpus)
    gpus = _gpus_here() if gpus is None else gpus
    if num_nodes < 1 or not 0 < cpus < float("inf") or gpus < 0:
        raise FederationError(f"a plan needs num_nodes >= 1, cpus > 0, gpus >= 0, got {num_nodes}, {cpus:g}, {gpus}")
    for name, value, known in (("split", split, SPLITS), ("strategy", strategy, STRATEGIES)):
        if value not in known:
            raise FederationError(f"{name} is {' or '.join(map(repr, known))}, got {value!r}")
    broker = int(min(2.0, cpus / 10) * UNITS)
    rest = int(cpus * UNITS) - broker
    shares = _cpu_shares(num_nodes, rest, split, cpus_per_node, seed, cpus, broker)
    cards = _gpu_shares(num_nodes, gpus, gpus_per_node)
    bundles = tuple(Bundle(share / UNITS, amount, ids) for share, (amount, ids) in zip(shares, cards, strict=True))
    return Resources(cpus, gpus, broker / UNITS, bundles, strategy)


def _cpu_shares(
    n: int, rest: int, split: str, each: float | None, seed: int, cpus: float, broker: int
) -> Sequence[int]:
    """Units of CPU by node."""
    if each is not None:
        wanted = round(each * UNITS)
        if wanted < 1 or wanted * n > rest:
            raise FederationError(
                f"{n} nodes with {each:g} CPUs each need {n * each:g}, and the broker {broker / UNITS:g}; there are "
                f"{cpus:g}: at most {rest // n / UNITS:g} each"
            )
        return [wanted] * n
    if rest < n:
        raise FederationError(
            f"{n} nodes share {rest / UNITS:g} CPUs, which is less than 1/{UNITS} each; there are {cpus:g}, of which "
            f"the broker has {broker / UNITS:g}"
        )
    if split == "uniform":
        return [rest // n] * n
    rng = Random(f"{seed}/resources")
    weights = [rng.expovariate(1.0) for _ in range(n)]
    spare, total = rest - n, sum(weights)
    return [1 + int(spare * weight / total * (1 - 1e-12)) for weight in weights]


def _gpu_shares(n: int, gpus: int, each: float | None) -> Sequence[tuple[float, tuple[int, ...]]]:
    """How much of which GPUs, by node."""
    if each is not None and (each < 0 or (each > 1 and each != int(each))):
        raise FederationError(f"gpus_per_node is a share of one GPU, 0 to 1, or a whole number, got {each:g}")
    if not gpus or each == 0:
        if each:
            warnings.warn(f"there is no GPU: {n} nodes that ask for {each:g} each run on CPUs", stacklevel=3)
        return [(0.0, ())] * n
    whole = gpus // n if each is None else int(each) if each >= 1 else 0
    if whole:
        if whole * n > gpus:
            raise FederationError(f"{n} nodes with {whole} GPUs each need {whole * n}; there are {gpus}")
        return [(float(whole), tuple(range(k * whole, (k + 1) * whole))) for k in range(n)]
    if each is None:
        on_card = [len(range(card, n, gpus)) for card in range(gpus)]
        return [(UNITS // on_card[k % gpus] / UNITS, (k % gpus,)) for k in range(n)]
    units = round(each * UNITS)
    fit = UNITS // units if units else 0
    if n > fit * gpus:
        raise FederationError(
            f"{n} nodes with {each:g} of a GPU each: {fit} fit on one, {fit * gpus} on the {gpus} there are"
        )
    return [(units / UNITS, (k // fit,)) for k in range(n)]


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()
