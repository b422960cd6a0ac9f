"""The ledgers of a federation: one file for each node that aggregates, and one folder for what they aggregated."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from byzflow.errors import FederationError
from byzflow.gossip.effects import NodeId
from byzflow.ledger import INPUTS, Ledger
from byzflow.operators import Operator


class Ledgers:
    """DIR/NODE.jsonl for each of these nodes, DIR/inputs for the arrays; characters that files may not have are quoted.

    Nothing is opened or made before a node's is asked for.
    """

    def __init__(self, folder: str | Path, nodes: Iterable[NodeId]) -> None:
        self.folder, self.nodes = Path(folder), tuple(nodes)
        self._open: dict[NodeId, Ledger] = {}

    def file(self, node: NodeId) -> Path:
        """The node's."""
        return self.folder / f"{quote(str(node), safe='')}.jsonl"

    def check_unused(self) -> None:
        """FederationError if there are rounds of an earlier run: a ledger holds each round once."""
        for file in map(self.file, self.nodes):
            if file.exists() and file.stat().st_size:
                raise FederationError(f"{file} holds rounds of an earlier run: resume that one, or take another folder")

    def rewind(self, done: int) -> None:
        """Keep the first `done` rounds of an earlier run, from which this one goes on."""
        for node in self.nodes:
            if self.file(node).exists():
                self.of_node(node).rewind(done)

    def of_node(self, node: NodeId) -> Ledger:
        """The node's, opened when it is first asked for."""
        if node not in self._open:
            self._open[node] = Ledger(self.file(node), str(node), self.folder / INPUTS)
        return self._open[node]

    def close(self) -> None:
        """Close all of them."""
        for ledger in self._open.values():
            ledger.close()
        self._open.clear()


def check_recordable(rule: Operator) -> None:
    """FederationError for a rule whose rounds cannot be computed one by one."""
    if rule.vector_names:
        raise FederationError(
            f"{rule} remembers {', '.join(sorted(rule.vector_names))} from round to round, so a ledger's "
            "rounds could not be checked one by one: leave ledger out, or take a rule without a memory"
        )
