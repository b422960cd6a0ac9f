"""The two calls that most users need."""

from __future__ import annotations

from typing import Any

from byzflow.errors import SpecError
from byzflow.operators import Attack, Nonfinite, Operator
from byzflow.spec import parse, parse_attack


def aggregate(
    spec: str | Operator,
    rows: Any,
    f: int | None = None,
    *,
    preset: str | None = None,
    nonfinite: Nonfinite = "reject",
    **extras: Any,
) -> Any:
    """Aggregate n rows by a spec: one row, in the kind, dtype and device of the rows.

    `f` fills each f that the spec leaves open; a chain that ends in a pre-aggregator gives m rows. `preset`
    fills other parameters as another library has them; `extras` are arrays that the rule takes, such as `center`.
    Rows with NaN or Inf are left out (`nonfinite`).

    >>> byzflow.aggregate("nnm | trimmed_mean", [torch.ones(3), torch.zeros(3), torch.ones(3)], f=1)
    tensor([1., 1., 1.])
    """
    operator = parse(spec, f=f, preset=preset, kind="aggregator")
    if isinstance(operator, Attack):
        raise SpecError(f"{operator.name} is an attack: call byzflow.attack")
    return operator(rows, nonfinite=nonfinite, **extras)


def attack(spec: str | Operator, honest: Any, f: int | None = None, *, preset: str | None = None, **extras: Any) -> Any:
    """What f Byzantine participants send, given the h honest rows: f rows in the kind of `honest`.

    >>> byzflow.attack("sign_flip", torch.ones(4, 2), f=1)
    tensor([[-1., -1.]])
    """
    return parse_attack(spec, f, preset=preset)(honest, **extras)
