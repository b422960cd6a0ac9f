"""How many samples nodes say they have, and how far that is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from byzflow.errors import FederationError
from byzflow.gossip.effects import NodeId


def checked_cap(cap: float | None) -> float | None:
    """The cap. FederationError unless it is a finite number > 0, or None."""
    if cap is not None and not 0 < cap < math.inf:
        raise FederationError(f"sample_cap must be a finite number > 0, or None to count all nodes alike, got {cap!r}")
    return cap


def believed(claims: Mapping[NodeId, Any], cap: float) -> dict[NodeId, float]:
    """What each sender counts: its claim, at most the cap; as one sample where it is no number > 0."""
    return {node: min(_number(claim), cap) for node, claim in claims.items()}


def _number(claim: Any) -> float:
    sound = isinstance(claim, int | float) and not isinstance(claim, bool) and claim > 0  # NaN is not
    return float(min(claim, 1e300)) if sound else 1.0
