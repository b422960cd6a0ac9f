"""Which operator aggregates a round: the spec, with an f that may follow the number of clients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import byzflow
from byzflow.errors import SpecError
from byzflow.spec import parse_rule


@dataclass(frozen=True)
class Rule:
    """A spec, and how many clients of a round may be Byzantine: a number, or "auto" for a fraction of the clients.

    With "auto" f is the fraction of the clients sampled in a round, rounded up. `per_layer` applies the rule to every
    array of the model by itself. Raises SpecError for what does not read or is no aggregation.
    """

    spec: str | byzflow.Operator
    f: int | Literal["auto"] | None = None
    fraction: float | None = None
    per_layer: bool = False

    def __post_init__(self) -> None:
        """Every mistake in the settings shows before the first round."""
        if self.f == "auto":
            if self.fraction is None:
                raise SpecError("f='auto' needs fraction=, the share of a round's clients that may be Byzantine")
            if not isinstance(self.spec, str):
                raise SpecError(f"f='auto' needs a spec to fill in, and {self.spec} has its f: pass it as a string")
        elif self.f is not None and (isinstance(self.f, bool) or not isinstance(self.f, int) or self.f < 0):
            raise SpecError(f"f must be an integer >= 0 or 'auto', got {self.f!r}")
        elif self.fraction is not None:
            raise SpecError(f"fraction={self.fraction} is for f='auto', got f={self.f!r}")
        if self.fraction is not None and not (_is_number(self.fraction) and 0 <= self.fraction < 0.5):
            raise SpecError(f"fraction must be a number >= 0 and < 0.5, got {self.fraction!r}")
        self.operator(0)

    def declared(self, n: int) -> int | None:
        """The f for n clients; None if none was given."""
        if self.f != "auto":
            return self.f
        assert self.fraction is not None
        return math.ceil(self.fraction * n - 1e-9)  # 0.1 * 30 is a little more than 3

    def operator(self, n: int) -> byzflow.Operator:
        """The operator for n clients, not yet checked for so many."""
        operator = parse_rule(self.spec, self.declared(n))
        if not self.per_layer:
            return operator
        layerwise = byzflow.installed().find("layerwise").operator
        return operator if isinstance(operator, layerwise) else layerwise(rule=operator)  # type: ignore[call-arg]

    def bears(self, n: int) -> int:
        """How many Byzantine ones of n clients it is declared to bear: the operator's f, else the one given."""
        operator = self.operator(n)
        return (self.declared(n) or 0) if operator.made_for is None else operator.made_for


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
