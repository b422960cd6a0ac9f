"""The audit as JSON lines, one a round: written as the run goes on, read by `byzflow audit`.

Importing this file imports neither flwr nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from byzflow.errors import ByzflowError
from byzflow_flower.audit import RoundAudit


def check(file: str | Path) -> Path:
    """The path, after a try to write there. Raises ByzflowError, so that a run fails at its start and not later."""
    path = Path(file)
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise ByzflowError(f"cannot write the audit to {path}: {error.strerror}") from None
    return path


def append(path: Path, audit: RoundAudit) -> None:
    """One more line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(audit.as_dict(), allow_nan=False) + "\n")


def read(path: str | Path) -> list[RoundAudit]:
    """All rounds of the file, in order. Raises ByzflowError, naming the line, if it is no audit.

    A last line without its end is one that a crash cut off, and is left out.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ByzflowError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    *lines, _ = text.split("\n")
    audits = []
    for number, line in enumerate(lines, 1):
        try:
            audits.append(RoundAudit.of_dict(json.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise ByzflowError(f"{path}, line {number} is no round of an audit, as audit_file= writes") from None
    if not audits:
        raise ByzflowError(f"{path} holds no round of an audit")
    return audits


def runs(audits: Sequence[RoundAudit]) -> list[list[RoundAudit]]:
    """The rounds by run: a new one begins where the number of the round does not grow."""
    found: list[list[RoundAudit]] = []
    last: dict[str, int] = {}
    for audit in audits:
        if not found or audit.server_round <= last.get(audit.step, 0):
            found.append([])
            last = {}
        last[audit.step] = audit.server_round
        found[-1].append(audit)
    return found
