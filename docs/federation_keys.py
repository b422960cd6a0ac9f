"""The directive `federation-keys`: the keys of a federation's file as tables, from the structs that read it."""

from __future__ import annotations

from typing import Any

from docutils.nodes import Node
from sphinx.util.docutils import SphinxDirective

from byzflow.federation.config import table


class FederationKeys(SphinxDirective):
    """`{federation-keys}`"""

    def run(self) -> list[Node]:
        """One row a key."""
        lines = ["| key | type and range | default | meaning |", "|---|---|---|---|"]
        for row in table():
            key, kind, default, meaning = (each.replace("|", "\\|") for each in row)
            lines.append(f"| `{key}` | {kind} | {f'`{default}`' if default else ''} | {meaning} |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("federation-keys", FederationKeys)
    return {"parallel_read_safe": True}
