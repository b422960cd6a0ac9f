"""What nodes that run code of their own send each other."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from byzflow.gossip.effects import NodeId


@dataclass(frozen=True)
class Message:
    """A header, which is its type, and a body of any kind. Who receives it may read the body, and not change it."""

    header: str
    sender_id: NodeId = ""
    body: Any = None
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When it was made, in UTC."""
    round: int | None = None
    """The round that it belongs to, for receivers who ask for one."""


def snapshot(value: Any) -> Any:
    """A copy that stays as it is when the sender trains on; of tensors without their graphs."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: snapshot(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(snapshot, value))
    return copy.deepcopy(value)
