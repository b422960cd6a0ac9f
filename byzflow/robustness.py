"""What is proven of a rule: how many Byzantine rows it bears, and how far they can move it.

(f, kappa)-robust (Allouah et al., AISTATS 2023, https://arxiv.org/abs/2302.01772): for every set S of n - f rows with
mean x_S, ||F - x_S||^2 <= kappa/|S| sum_S ||x_i - x_S||^2. (f, lambda)-resilient (Farhadkhani et al., ICML 2022,
https://arxiv.org/abs/2205.12173): ||F - x_S|| <= lambda max_S ||x_i - x_j||. No rule has kappa < f/(n - 2f).

An operator states its own in `bounds`; a pre-aggregator states in `improve` what it makes of the bounds of what
follows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from byzflow.errors import ByzflowError, SpecError

if TYPE_CHECKING:
    from byzflow.operators import Operator

ROBUST_MEAN = "https://arxiv.org/abs/2302.01772"
RESAM = "https://arxiv.org/abs/2205.12173"


@dataclass(frozen=True)
class Bounds:
    """What an operator states of itself for n rows, f of them Byzantine; None where nothing is proven.

    kappa and lambda are only ever asked for where 2f < n.
    """

    kappa: float | None = None
    lam: float | None = None
    breakdown: float | None = None
    """Largest share of Byzantine rows for which the result stays bounded."""
    note: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Theory:
    """The theory of a spec for given n and f."""

    spec: str
    n: int
    f: int
    valid: bool
    breakdown: float | None
    kappa_upper: float | None
    kappa_lower: float | None
    lambda_upper: float | None
    note: str
    reference: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def ratio(n: int, f: int) -> float:
    """a = f/(n - 2f), the least kappa that any rule can have."""
    return f / (n - 2 * f)


def dimension_factor(n: int, f: int, d: int | None) -> float:
    """min(2 sqrt(n - f), sqrt(d)): what coordinate-wise rules lose against the diameter."""
    wide = 2 * math.sqrt(n - f)
    return wide if d is None else min(wide, math.sqrt(d))


def theory(spec: str | Operator, n: int, f: int, d: int | None = None) -> Theory:
    """What is proven of a spec for n rows, f of them Byzantine, of d coordinates (any d if None).

    >>> byzflow.theory("krum(neighbors=n-f-1)", n=20, f=4).kappa_upper
    8.0
    """
    from byzflow.operators import Attack
    from byzflow.spec import parse

    if n < 1 or not 0 <= f < n:
        raise SpecError(f"theory needs n >= 1 and 0 <= f < n, got n={n}, f={f}")
    operator = parse(spec, f=f, kind="aggregator")
    if isinstance(operator, Attack):
        raise SpecError(f"{operator} is an attack: theory speaks of aggregations")
    try:
        operator.check(n)
    except ByzflowError as error:
        return Theory(str(operator), n, f, False, None, None, None, None, str(error), "")
    majority = 2 * f < n
    bounds = operator.bounds(n, f, d) if majority else Bounds(note="no rule bears a majority of Byzantine rows")
    lower = ratio(n, f) if majority else None
    upper = bounds.kappa
    if upper is None and bounds.lam is not None:  # a diameter squared is at most 2 |S| variances
        upper = 2 * (n - f) * bounds.lam**2
    return Theory(
        spec=str(operator),
        n=n,
        f=f,
        valid=True,
        breakdown=bounds.breakdown,
        kappa_upper=upper,
        kappa_lower=lower,
        lambda_upper=bounds.lam,
        note=bounds.note,
        reference=bounds.reference,
    )
