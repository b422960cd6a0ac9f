"""How long to wait for who is late: as long as most take, and somewhat more, but never longer than a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

KEPT = 10  # rounds


class Deadline:
    """Seconds that a node waits for vectors once it has its quorum.

    The first rounds may take `longest`. Then it is 3 median + 8 MAD of the times in which vectors came in the last ten
    rounds, plus `margin`: fewer than half of the senders cannot stretch it beyond what the others' times allow.
    """

    def __init__(self, longest: float, margin: float = 1.0) -> None:
        self.longest, self.margin = longest, margin
        self._ages: deque[list[float]] = deque(maxlen=KEPT)

    def note(self, ages: Iterable[float]) -> None:
        """The times of one round, seconds."""
        if given := list(ages):
            self._ages.append(given)

    def seconds(self) -> float:
        """For the next round."""
        if len(self._ages) < 3:
            return self.longest
        ages = [age for round in self._ages for age in round]
        middle = median(ages)
        spread = median(abs(age - middle) for age in ages)
        return min(self.longest, self.margin + 3 * middle + 8 * spread)
