"""The attack against the rule, step by step, and what the two remember."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from byzflow.engine.extras import PerRow
from byzflow.engine.report import Aggregation
from byzflow.errors import SpecError
from byzflow.operators import Attack, Operator

Row = dict[str, Tensor]


class Contest:
    """Rows in, their aggregate out; `state` holds what `attack` and `operator` remember, empty at the start."""

    def __init__(self, operator: Operator, attack: Attack | None) -> None:
        self.operators: dict[str, Operator] = {"operator": operator} | ({"attack": attack} if attack else {})
        self.state: dict[str, dict[str, Any]] = {}
        self.milliseconds = 0.0  # of the last step

    def aggregate(self, own: Sequence[Row], honest: Sequence[Row], audit: bool) -> Aggregation:
        """The rule over what liars send, then the honest rows; with everybody's weight if asked for.

        Without an attack the liars send `own`; an attack may start from it.
        """
        start = time.perf_counter()
        sent = list(own)
        if "attack" in self.operators:
            sent = list(self._call("attack", honest, False, **({"own": sent} if sent else {})).value)
        aggregation = self._call("operator", [*sent, *honest], audit)
        self.milliseconds = 1000 * (time.perf_counter() - start)
        return aggregation

    def save(self, zero: Row) -> dict[str, Any]:
        """The state in tensors and numbers; a row of which nothing is remembered is zero."""
        return {
            home: {
                name: [zero if each is None else each for each in value] if isinstance(value, PerRow) else value
                for name, value in state.items()
            }
            for home, state in self.state.items()
        }

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what `save` gave. SpecError if it is another operator's."""
        for home, remembered in state.items():
            operator = self.operators.get(home)
            if unknown := remembered.keys() - (operator.accepts if operator is not None else set()):
                raise SpecError(f"the checkpoint holds {', '.join(sorted(unknown))}, unknown to {home} {operator}")
        self.state = {home: dict(each) for home, each in state.items() if home in self.operators}

    def _call(self, home: str, rows: Sequence[Row], audit: bool, **extras: Any) -> Aggregation:
        # An audit costs more than some rules. It also tells what to remember, so an operator that remembers something,
        # which its first call shows, has one in each step.
        operator, state = self.operators[home], self.state.get(home)
        if state is None or state or audit:
            aggregation = operator.explain(rows, **extras, **(state or {}))
            self.state[home] = dict(aggregation.state)
            return aggregation
        return operator.run(rows, nonfinite="reject", **extras)
