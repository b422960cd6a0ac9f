"""A participant that runs code of its own: it sends and receives what and when it likes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from byzflow.errors import FederationError, Stopped
from byzflow.federation.message import Message, snapshot
from byzflow.federation.published import Published
from byzflow.federation.topology_manager import PATIENCE, TopologyManager
from byzflow.gossip.effects import NodeId

LOG = logging.getLogger("byzflow.node")


class FederatedNode:
    """Subclass it: `build` makes what it needs, `train` is its program, which runs on a thread of its own.

        class Client(FederatedNode):
            def build(self):
                self.model = make_model("softmax", (8, 8), 10)

            def train(self, rounds):
                for t in range(rounds):
                    ...
                    self.send("update", {"weights": self.model.state_dict()}, to="server", round=t)
                    answer = self.receive(block=True, type="model", round=t)

    Messages pass only along the edges of the federation's graph, checked at both ends. Keyword arguments beside the
    four of the constructor go to `build`, which is called once, when the node exists.
    """

    def __init__(
        self, node_id: NodeId, role: str = "train", config: Any = None, log: Any = None, **kwargs: Any
    ) -> None:
        self.id, self.role, self.config = node_id, role, config
        self.log = log or LOG
        self.metrics: dict[str, Any] = {}
        self.versions = Published(node_id)
        self._manager: TopologyManager | None = None
        if kwargs:
            self.build = partial(self.build, **kwargs)  # type: ignore[method-assign]

    def build(self, **kwargs: Any) -> None:
        """Make models and data; nothing to make unless a subclass says so."""

    def train(self, **kwargs: Any) -> Mapping[str, Any] | None:
        """The node's program; metrics, if it has some to tell."""
        raise FederationError(f"{type(self).__name__} needs a method train(**args)")

    def test(self, phase: str, **kwargs: Any) -> Any:
        """How good its model is, in a phase "train", "eval" or "test"."""
        raise FederationError(f"{type(self).__name__} needs a method test(phase, **args)")

    # ------------------------------------------------------------------ messages

    @property
    def neighbors(self) -> list[NodeId]:
        """To whom it may send, by the graph of now."""
        return self._joined().get_neighbors(self.id)

    def send(
        self,
        header: str,
        body: Any = None,
        to: NodeId | Sequence[NodeId] | None = None,
        *,
        round: int | None = None,
        timeout: float = PATIENCE,
    ) -> None:
        """A message to neighbours, by default to all of them. The body is copied once, however many receive it.

        Waits while a receiver has too many of this node's messages. Raises NotANeighbour before anything is sent,
        MailboxFull after `timeout` seconds, Stopped when the run is over.
        """
        self._joined().publish(Message(header, self.id, snapshot(body), round=round), to, timeout)

    def receive(
        self, block: bool = False, timeout: float | None = None, type: str | None = None, round: int | None = None
    ) -> Message | None:
        """The oldest message, of this type and round if they are given; every other one stays.

        None if there is none; with `block` only after `timeout` seconds, or never. Raises Stopped when the run is over,
        which ends `train` and is no error there.
        """
        return self._joined().receive(self.id, type, round, timeout if block else 0.0)

    def enqueue(self, msg: Message) -> bool:
        """Put a message into this node's own mailbox; false if it was refused, such as one of no neighbour."""
        return self._joined().enqueue(self.id, msg)

    def stop(self) -> None:
        """End what it waits for, and with that its program."""
        self._joined().supervise("STOP", None, [self.id])

    def ping(self) -> str:
        """A sign of life."""
        return "pong"

    # ------------------------------------------------------------------ versions and metrics

    @property
    def version(self) -> int:
        """How many versions it has published."""
        return self.versions.number

    def update_version(self, **values: Any) -> None:
        """Publish these values, such as weights=model.state_dict(), as its next version."""
        self.versions.publish(**values)

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Add to what the node tells at the end of its training."""
        self.metrics.update(metrics)

    # ------------------------------------------------------------------ roles

    @property
    def is_train_node(self) -> bool:
        """If it trains."""
        return "train" in self.role.split("-")

    @property
    def is_eval_node(self) -> bool:
        """If it evaluates."""
        return "eval" in self.role.split("-")

    @property
    def is_test_node(self) -> bool:
        """If it tests."""
        return "test" in self.role.split("-")

    # ------------------------------------------------------------------ what its federation calls

    def join(self, manager: TopologyManager) -> None:
        """Talk by this manager from now on."""
        self._manager = manager

    def _setup_train(self) -> bool:
        """True if it is joined to the others. Raises FederationError if not."""
        self._joined()
        self.versions.resume()
        return True

    def _train(self, **kwargs: Any) -> dict[str, Any]:
        """`train` to its end, or until the run is stopped; all that it told."""
        try:
            told = self.train(**kwargs)
        except Stopped:
            told = None
        finally:
            self.versions.end()
        return {**self.metrics, **(told if isinstance(told, Mapping) else {})}

    def _test(self, phase: str, **kwargs: Any) -> Any:
        return self.test(phase, **kwargs)

    def _pull_version(self, number: int | None = None, timeout: float | None = None) -> dict[str, Any] | None:
        return self.versions.pull(number, timeout)

    def _joined(self) -> TopologyManager:
        if self._manager is None:
            raise FederationError(f"node {self.id} is in no federation yet: it has neighbours once `train` was called")
        return self._manager
