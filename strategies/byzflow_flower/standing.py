"""What the rounds so far say of each node: a running suspicion, and how often it was caught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low

import numpy as np

from byzflow.memory import ByNode
from byzflow_flower.audit import Rejection

FAR = 2.5  # medians; honest clients with data of their own lie up to twice as far off as the middle one
MEMORY = 0.8  # of a suspicion that a round leaves: half is forgotten in about three rounds
SUSPICION, STRIKES = "node suspicion", "node strikes"  # names in a saved state; no extra has a space in its name


@dataclass(frozen=True)
class Standing:
    """The suspicion of each node that was heard, 0 to 1, and its strikes.

    A round judges each node that it heard. A malformed reply: 1. A reply that counted: far x light, where
    far = (distance to the result / median distance - 1) / 1.5, cut to 0..1 (1 from 2.5 times the median on), and
    light = 1 - n x weight, cut to 0..1 (1 if the rule gave it nothing, 0 if an equal share or more). Both are needed:
    honest clients with rare data lie far off, and Krum gives nothing to all but one. Errors and silence judge nobody.
    The suspicion is the exponential average: s <- 0.8 s + 0.2 judgement, from 0.

    An attacker that hides among the honest updates (ALIE, mimic) is not suspect, and the plain mean, which gives all
    the same weight, suspects nobody. So a suspicion is for eyes, and nothing here acts on it.

    A strike is a malformed reply that shows itself to be so, beside what was sent: no other client has a part in it.
    """

    suspicion: Mapping[int, float] = field(default_factory=dict)
    strikes: Mapping[int, int] = field(default_factory=dict)

    def after(
        self, weights: Mapping[int, float], distances: Mapping[int, float], rejected: Sequence[Rejection], f: int
    ) -> Standing:
        """With one more round. With more than f malformed replies in it nobody gets a strike.

        So many at once are a fault of the app, or f is wrong; excluding them would end the training.
        """
        judged = _judged(weights, distances)
        malformed = {each.node_id for each in rejected if each.malformed}
        judged |= dict.fromkeys(malformed, 1.0)
        suspicion = {**self.suspicion}
        for node, judgement in judged.items():
            suspicion[node] = MEMORY * suspicion.get(node, 0.0) + (1 - MEMORY) * judgement
        strikes = {**self.strikes}
        if len(malformed) <= f:
            for node in {each.node_id for each in rejected if each.malformed and not each.by_comparison}:
                strikes[node] = strikes.get(node, 0) + 1
        return Standing(dict(sorted(suspicion.items())), strikes)

    def excluded(self, after: int | None) -> tuple[int, ...]:
        """The nodes with so many strikes, by id; none for None."""
        return tuple(sorted(node for node, count in self.strikes.items() if after is not None and count >= after))

    def as_state(self) -> dict[str, ByNode]:
        """For `memory.save`."""
        return {
            SUSPICION: ByNode({node: np.float64(score) for node, score in self.suspicion.items()}),
            STRIKES: ByNode(self.strikes),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Mapping[int, float]]) -> Standing:
        """From what `memory.load` gave; empty where there is nothing."""
        strikes = {node: int(count) for node, count in state.get(STRIKES, {}).items()}
        return cls({node: float(score) for node, score in state.get(SUSPICION, {}).items()}, strikes)


def _judged(weights: Mapping[int, float], distances: Mapping[int, float]) -> dict[int, float]:
    """Far times light, of each node whose reply counted."""
    if not distances:
        return {}
    middle, n = median_low(distances.values()), len(distances)
    judged = {}
    for node, distance in distances.items():
        over = distance - middle
        far = 0.0 if over <= 0 else min(1.0, over / ((FAR - 1) * middle)) if middle > 0 else 1.0
        light = min(1.0, max(0.0, 1 - n * weights.get(node, 0.0))) if weights else 1.0
        judged[node] = far * light
    return judged
