"""Looks for rows that a rule does badly on: a lower bound on its kappa, by hill climbing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import torch
from torch import Tensor

from byzflow.errors import SpecError
from byzflow.operators import Operator
from byzflow.spec import parse

SUBSETS = 20_000  # honest sets that are looked at


@dataclass(frozen=True, eq=False)
class Found:
    """The worst ratio that was found, and where."""

    kappa: float
    rows: Tensor
    """(n, d) float64."""
    honest: tuple[int, ...]
    """The n - f rows taken as honest."""
    evaluations: int


def kappa_search(
    spec: str | Operator, n: int, f: int, seed: int = 0, *, d: int = 2, evaluations: int = 2000, restarts: int = 8
) -> Found:
    """The largest kappa, `||F - x_S||^2` by the mean `||x_i - x_S||^2`, found over rows (n, d) and honest sets S.

    A ratio that it finds is real; a larger one may exist. `evaluations` calls of the rule are shared by `restarts`
    climbs. Raises SpecError where there are too many honest sets to look at.
    """
    operator = parse(spec, f=f)
    operator.check(n)
    if comb(n, f) > SUBSETS:
        raise SpecError(f"kappa_search looks at every set of n - f rows: {comb(n, f):,} are more than {SUBSETS:,}")
    honest = torch.tensor(list(islice(combinations(range(n), n - f), SUBSETS)))
    generator = torch.Generator().manual_seed(seed)
    best = Found(-1.0, torch.zeros(n, d), (), 0)
    for start in range(restarts):
        rows = _start(n, f, d, start, generator)
        value, where = worst(operator, rows, honest)
        step = 1.0
        for _ in range(evaluations // restarts):
            moved = torch.rand(n, 1, generator=generator) < 2 / n
            trial = rows + step * moved * torch.randn(n, d, generator=generator, dtype=torch.float64)
            if torch.rand(1, generator=generator) < 0.2:  # ties are where rules are worst: let rows meet
                i, j = torch.randint(n, (2,), generator=generator)
                trial[i] = trial[j]
            trial_value, trial_where = worst(operator, trial, honest)
            if trial_value > value:
                rows, value, where, step = trial, trial_value, trial_where, step * 1.3
            else:
                step = max(step * 0.97, 1e-4)
        if value > best.kappa:
            best = Found(value, rows, tuple(honest[where].tolist()), evaluations)
    return best


def _start(n: int, f: int, d: int, start: int, generator: torch.Generator) -> Tensor:
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if start % 3 == 1:  # two clusters, the smaller one of f rows, at some distance
        rows *= 0.1
        rows[:f] += 2.0 ** (start - 1)
    if start % 3 == 2:  # honest rows far from the origin, the others on its other side, a little nearer
        rows += 100
        rows[:f] *= -0.9
    return rows


def worst(operator: Operator, rows: Tensor, honest: Tensor) -> tuple[float, int]:
    """The largest ratio over the honest sets (count, n - f), and the index of that set."""
    value = operator(rows)
    sets = rows[honest]
    means = sets.mean(1)
    variances = (sets - means[:, None]).square().sum(2).mean(1)
    errors = (value - means).square().sum(1)
    # where the honest rows are equal any error is infinitely bad; rounding is not
    scale = float(rows.square().sum(1).max()) * 1e-12
    ratios = torch.where(errors <= scale, 0.0, errors / variances.clamp(min=scale))
    index = int(ratios.argmax())
    return float(ratios[index]), index
