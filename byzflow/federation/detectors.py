"""When a silent worker counts as dead: after a time, or when its silence would be too great a surprise."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, pstdev
from typing import Protocol


class Detector(Protocol):
    """Watches one worker. Times are seconds on one clock that never goes back."""

    def heard(self, at: float) -> None:
        """It answered a heartbeat."""

    def suspects(self, now: float) -> bool:
        """If it is to count as dead."""


class Timeout:
    """Dead after a silence of `beats` heartbeats; `period` (seconds) lies between two."""

    def __init__(self, period: float, beats: float = 2.0) -> None:
        self._limit, self._last = beats * period, math.inf

    def heard(self, at: float) -> None:
        """It answered."""
        self._last = at

    def suspects(self, now: float) -> bool:
        """If the silence is that long."""
        return now - self._last >= self._limit * 0.99  # timers may ring a little early


class PhiAccrual:
    """Dead when so long a silence, of a worker that answered so regularly, has probability 10^-threshold.

    Intervals are taken as normal, over the last `window` heartbeats, with a deviation of at least a quarter of the
    period. Hayashibara et al., SRDS 2004.
    """

    def __init__(self, period: float, threshold: float = 8.0, window: int = 100) -> None:
        self._period, self._threshold = period, threshold
        self._intervals = deque([period], maxlen=window)
        self._last = math.inf

    def heard(self, at: float) -> None:
        """It answered."""
        if at > self._last:
            self._intervals.append(at - self._last)
        self._last = at

    def phi(self, now: float) -> float:
        """-log10 of the probability of a silence at least that long."""
        if now <= self._last:
            return 0.0
        deviation = max(pstdev(self._intervals), self._period / 4)
        surprise = (now - self._last - fmean(self._intervals)) / (deviation * math.sqrt(2))
        tail = 0.5 * math.erfc(surprise)
        return math.inf if tail <= 0 else -math.log10(tail)

    def suspects(self, now: float) -> bool:
        """If phi is above the threshold."""
        return self.phi(now) > self._threshold
