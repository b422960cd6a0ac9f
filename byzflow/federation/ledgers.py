"""The ledgers of a federation: one file for each node that aggregates, and one folder for what they aggregated."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from byzflow.errors import FederationError
from byzflow.gossip.effects import NodeId
from byzflow.ledger import INPUTS, Ledger
from byzflow.operators import Operator


class Ledgers:
    """DIR/NODE.jsonl for each node, DIR/inputs for the arrays; characters that files may not have are quoted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[NodeId, Ledger] = {}

    @classmethod
    def of(cls, folder: str | Path | None, operator: Operator) -> Ledgers | None:
        """None without a folder. FederationError for a rule whose rounds cannot be computed one by one."""
        if folder is None:
            return None
        if operator.vector_names:
            raise FederationError(
                f"{operator} remembers {', '.join(sorted(operator.vector_names))} from round to round, so a ledger's "
                "rounds could not be checked one by one: leave ledger out, or take a rule without a memory"
            )
        return cls(Path(folder))

    def of_node(self, node: NodeId) -> Ledger:
        """The node's, opened when it is first asked for."""
        if node not in self._open:
            file = self.folder / f"{quote(str(node), safe='')}.jsonl"
            self._open[node] = Ledger(file, str(node), self.folder / INPUTS)
        return self._open[node]

    def close(self) -> None:
        """Close all of them."""
        for ledger in self._open.values():
            ledger.close()
        self._open.clear()
