"""The versions of a node's model: published by it, read by anybody, the newest few kept."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from byzflow.errors import FederationError
from byzflow.federation.message import snapshot
from byzflow.gossip.effects import NodeId

KEPT = 4


class Versions:
    """Of one node; numbered from 0. Reading takes nothing away, and memory is bounded: the `kept` newest stay.

    Any thread may publish and read.
    """

    def __init__(self, node: NodeId, kept: int = KEPT) -> None:
        """Raises FederationError for kept < 1."""
        if kept < 1:
            raise FederationError(f"at least one version is kept, got kept={kept}")
        self._node, self._kept = node, deque[dict[str, Any]](maxlen=kept)
        self._published, self._ended = 0, False
        self._changed = threading.Condition()

    @property
    def published(self) -> int:
        """How many there have been, which is the number of the next."""
        return self._published

    def publish(self, **values: Any) -> int:
        """Keep copies of these values as the next version; its number."""
        model = snapshot(values)
        with self._changed:
            number, self._published = self._published, self._published + 1
            self._kept.append({"id": self._node, "n_version": number, "timestamp": time.time(), "model": model})
            self._changed.notify_all()
        return number

    def end(self) -> None:
        """There will be no more until `resume`: nobody needs to wait."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def resume(self) -> None:
        """There may be more again."""
        self._ended = False

    def pull(self, number: int | None = None, timeout: float | None = None) -> dict[str, Any] | None:
        """The newest version, or that of a number, waited for up to `timeout` seconds; None if it does not come.

        A mapping of id, n_version, timestamp (seconds) and model (the published values, not to be changed). Raises
        FederationError for a number that is not kept any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._published > (number or 0), timeout)
            if number is not None and self._kept and number < self._kept[0]["n_version"]:
                raise FederationError(f"version {number} of {self._node} is gone, the oldest is {self._kept[0]['n_version']}")
            found = [each for each in self._kept if number in (None, each["n_version"])]
            return dict(found[-1]) if found else None
