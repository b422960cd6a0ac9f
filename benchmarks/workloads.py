"""What is measured: rules, shapes, and the rows that they get.

A workload is a spec on n rows of d coordinates. Groups: `operators` (every rule on every shape), `byzpy` (ByzPy's own
published list), `growth-d` and `growth-n` (time by d and by n), `flower` (a server's step, replies to model).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SHAPES = ((10, 1_000_000), (64, 65_536), (32, 1_000_000), (100, 1_000_000), (200, 100_000))
SPREAD = 0.1  # standard deviation of an honest coordinate, on average


@dataclass(frozen=True)
class Workload:
    """One rule on one shape."""

    group: str
    name: str
    """What the row of the table is called, and what peers are looked up by."""
    spec: str
    n: int
    d: int
    f: int
    extras: tuple[str, ...] = ()
    """Extras of the call, by name; see `extras_for`."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Further parameters that the peers need too."""
    data: str = "outliers"
    """`outliers`: f of the rows lie elsewhere; `normal`: all rows are standard normal."""
    listed: bool = True
    """In ByzPy's published table, not only among its scripts."""
    leaves: int = 8
    """Arrays that the model of a Flower round is cut into."""

    @property
    def tau(self) -> float:
        """A radius that clips about half of the rows."""
        return SPREAD * self.d**0.5

    def setting(self, name: str) -> Any:
        """One of `settings`."""
        return dict(self.settings)[name]

    @property
    def label(self) -> str:
        """Its name and shape."""
        arrays = f" in {self.leaves} arrays" if self.group == "flower" else ""
        return f"{self.name} {self.n} x {self.d:,}{arrays}"


# Rules that have parameters without a default, or more rows out than one; all others are asked for by their name.
SPECS = {
    "centered_clipping": "centered_clipping(tau={tau:.6g}, iterations=10)",
    "centered_clipping, 100 steps": "centered_clipping(tau={tau:.6g}, iterations=100)",
    "monna": "monna(reference_index=0)",
    "huber": "huber(threshold={tau:.6g})",
    "gas": "gas(rule=multi_krum)",
    "rlr": "rlr(threshold=2)",
    "layerwise": "layerwise(rule=trimmed_mean)",
}
STEPS = "centered_clipping, 100 steps"
CHAINS = (STEPS, "nnm", "nnm | trimmed_mean", "arc | nnm | geometric_median", "arc | nnm | trimmed_mean")
EXTRAS = {"fltrust": ("server",)}


def operators(shapes: Sequence[tuple[int, int]] = SHAPES, only: Sequence[str] = ()) -> Iterator[Workload]:
    """Every installed aggregator and the main chains, on every shape; f is a fifth of n, less where a rule needs it."""
    import byzflow

    names = [entry.operator.name for entry in byzflow.installed().of_kind("aggregator")]
    for n, d in shapes:
        for name in (*names, *CHAINS):
            f = min(n // 5, (n - 3) // 4) if name == "bulyan" else n // 5
            spec = SPECS.get(name, name).format(tau=SPREAD * d**0.5)
            if _wanted(name, only):
                yield Workload("operators", name, spec, n, d, f, EXTRAS.get(name, ()))


FLOWER_SPECS = {
    "krum": "krum(strict=false)",
    "multi_krum": "multi_krum(strict=false)",
    "bulyan": "bulyan(selection=oneshot)",
}
GROWTH = ("median", "geometric_median", "nnm | trimmed_mean")
GROWTH_D = (10, (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000))
GROWTH_N = ((8, 16, 32, 64, 128, 256), 65_536)


def growth(only: Sequence[str] = (), small: bool = False) -> Iterator[Workload]:
    """A few rules over a range of d, and over a range of n."""
    for name in GROWTH:
        if not _wanted(name, only):
            continue
        for d in GROWTH_D[1][: 3 if small else None]:
            yield Workload("growth-d", name, name, GROWTH_D[0], d, GROWTH_D[0] // 5)
        for n in GROWTH_N[0][: 3 if small else None]:
            yield Workload("growth-n", name, name, n, GROWTH_N[1], n // 5)


FLOWER = (
    "mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "bulyan",
    "nnm | trimmed_mean",
    "arc | nnm | geometric_median",
)


def flower(
    only: Sequence[str] = (), shapes: Sequence[tuple[int, int]] | None = None, leaves: Sequence[int] = (8,)
) -> Iterator[Workload]:
    """The step of a Flower server in a round, 20 clients with a model of 3 million parameters in so many arrays."""
    for n, d in shapes or ((20, 3_000_000),):
        for count in leaves:
            for name in FLOWER:
                f = min(n // 5, (n - 3) // 4)
                if _wanted(name, only):
                    yield Workload("flower", name, FLOWER_SPECS.get(name, name), n, d, f, leaves=count)


def byzpy(only: Sequence[str] = ()) -> Iterator[Workload]:
    """ByzPy's own list: names, shapes and parameters from benchmarks/README.md of its repository.

    Of the parameter server the step that ByzPy is there for is measured, Multi-Krum on 13 gradients of its CNN.
    Sign flip, mimic and infinity have scripts beside that table, but no line in it.
    """
    for name, spec, n, d, f, settings in BYZPY:
        if _wanted(name, only):
            extras = ("permutation",) if name == "bucketing" else ()
            listed = name not in ("sign_flip", "mimic", "inf")
            yield Workload("byzpy", name, spec, n, d, f, extras, tuple(settings.items()), "normal", listed)


KRUM = "multi_krum(neighbors=n-f-1, strict=false, m={q})"
BYZPY: tuple[tuple[str, str, int, int, int, dict[str, Any]], ...] = (
    ("mda", "mda", 30, 2048, 10, {}),
    ("smea", "smea", 16, 4096, 5, {}),
    ("arc", "arc", 256, 65_536, 8, {}),
    ("trimmed_mean", "trimmed_mean", 64, 65_536, 8, {}),
    ("median", "median", 64, 65_536, 0, {}),
    ("multi_krum", KRUM.format(q=12), 80, 65_536, 20, {"q": 12}),
    ("geometric_median", "geometric_median", 64, 65_536, 0, {}),
    ("caf", "caf", 64, 65_536, 8, {}),
    ("monna", "monna(reference_index=0)", 64, 65_536, 8, {}),
    ("centered_clipping", "centered_clipping(tau=0.1, iterations=10)", 64, 65_536, 0, {"tau": 0.1}),
    ("cge", "cge", 64, 65_536, 8, {}),
    ("parameter server: multi_krum", KRUM.format(q=6), 13, 421_642, 3, {"q": 6}),
    ("ipm", "ipm(f=1, tau=1)", 64, 65_536, 0, {}),
    ("alie", "alie(f=1, z={z!r}, negative=false, ddof=0)", 96, 65_536, 12, {}),
    ("gaussian", "gaussian(f=1)", 64, 65_536, 0, {}),
    ("nnm", "nnm", 196, 4096, 32, {}),
    ("meamed", "meamed", 64, 65_536, 8, {}),
    ("bucketing", "bucketing(s=32)", 512, 16_384, 0, {"s": 32}),
    ("clipping", "clipping(c=2)", 256, 65_536, 0, {"c": 2.0}),
    ("sign_flip", "sign_flip(f=1)", 1, 262_144, 0, {}),
    ("mimic", "mimic(f=1)", 64, 65_536, 0, {}),
    ("inf", "inf(f=1)", 64, 65_536, 0, {}),
)


def _wanted(name: str, only: Iterable[str]) -> bool:
    only = list(only)
    return not only or name in only


def make_rows(workload: Workload) -> list[Tensor]:
    """n float32 rows, each with memory of its own, as they come from clients. The same for the same workload.

    Honest rows lie around a common vector, each with a spread of its own, so that no rule has to choose between
    equals; the last f rows are shifted.
    """
    n, d = workload.n, workload.d
    generator = torch.Generator().manual_seed(n * 1_000_003 + d)
    if workload.data == "normal":
        return [torch.randn(d, generator=generator) for _ in range(n)]
    common = SPREAD * torch.randn(d, generator=generator)
    spreads = (SPREAD * (0.5 + torch.rand(n, generator=generator))).tolist()
    rows = []
    for i, spread in enumerate(spreads):
        row = torch.randn(d, generator=generator).mul_(spread).add_(common)
        rows.append(row.add_(3 * SPREAD) if i >= n - workload.f else row)
    return rows


def extras_for(workload: Workload, rows: Sequence[Tensor]) -> dict[str, Any]:
    """The extras of the call: a server's vector near the rows, an order of the rows."""
    extras: dict[str, Any] = {}
    if "server" in workload.extras:
        extras["server"] = rows[0] + rows[1]
    if "permutation" in workload.extras:
        extras["permutation"] = torch.arange(workload.n)
    return extras
