"""What one node publishes, for threads: they publish, read, and wait for the next."""

from __future__ import annotations

import threading
import time
from typing import Any

from byzflow.errors import FederationError
from byzflow.federation.versions import VersionStore
from byzflow.gossip.effects import NodeId

TIME = "timestamp"


class Published:
    """The versions of one node, numbered from 1, in a store of its own. Any thread may call it."""

    def __init__(self, node: NodeId, keep: int = 4) -> None:
        """Raises FederationError for keep < 1."""
        self._node, self._store, self._ended = node, VersionStore(keep), False
        self._changed = threading.Condition()

    @property
    def number(self) -> int:
        """Of the latest version; 0 before the first."""
        return self._store.number(self._node)

    def publish(self, **values: Any) -> int:
        """Keep copies of these values as the next version; its number."""
        with self._changed:
            number = self._store.update_version(self._node, model=values, **{TIME: time.time()})
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
        """The latest version, or that of a number, waited for up to `timeout` seconds; None if it does not come.

        A mapping of id, n_version, timestamp (seconds) and model, copies of the published values. Raises
        FederationError for a number below 1, and for one that is not kept any more.
        """
        if number is not None and number < 1:
            raise FederationError(f"versions are numbered from 1, got {number}")
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.number >= (number or 1), timeout)
            if self.number < (number or 1):
                return None
            wanted = self.number if number is None else number
            return {"id": self._node, "n_version": wanted} | (self._store.latest(self._node, wanted) or {})
