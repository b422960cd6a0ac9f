"""Where a round's audit goes: memory, Flower's log, and if asked for a file and TensorBoard."""

from __future__ import annotations

from dataclasses import replace
from logging import INFO, WARNING, getLogger
from pathlib import Path
from typing import Any

from byzflow.errors import ByzflowError
from byzflow_flower import audit_file
from byzflow_flower.audit import RoundAudit
from byzflow_flower.standing import Standing

log = getLogger("flwr").log  # Flower's own logger


class AuditTrail:
    """The audits of a run, and the standing of each node that follows from them.

    Parameters
    ----------
    exclude_after : strikes after which a node is asked no more; None for never.
    file : where to append a JSON line a round, if anywhere.
    tensorboard : folder of TensorBoard's event files, if any.

    Raises
    ------
    ByzflowError : the file cannot be written, or TensorBoard is not installed.
    """

    def __init__(
        self,
        exclude_after: int | None = None,
        file: str | Path | None = None,
        tensorboard: str | Path | None = None,
    ) -> None:
        self.training: list[RoundAudit] = []
        self.evaluation: list[RoundAudit] = []
        self.standing = Standing()
        self._exclude_after = exclude_after
        self._file = None if file is None else audit_file.check(file)
        self._board = None if tensorboard is None else _board(tensorboard)

    @property
    def excluded(self) -> tuple[int, ...]:
        """The nodes that are asked no more."""
        return self.standing.excluded(self._exclude_after)

    def train(self, audit: RoundAudit, f: int) -> RoundAudit:
        """Judge a round of training in which at most f nodes lie, and tell it; with suspicions and who is excluded."""
        self.standing = self.standing.after(audit.weights, audit.distances, audit.rejected, f)
        certain = dict.fromkeys(self.excluded, 1.0)
        audit = replace(audit, suspicion={**self.standing.suspicion, **certain}, excluded=self.excluded)
        self.training.append(audit)
        for number, line in enumerate(audit.lines()):
            level = WARNING if audit.kept_model and not number else INFO
            log(level, "aggregate_train: %s" if not number else "\t> %s", line)
        malformed = sum(each.malformed for each in audit.rejected)
        if malformed > f:
            log(WARNING, "aggregate_train: %d malformed replies, more than the declared f=%d", malformed, f)
        self._write(audit)
        return audit

    def evaluate(self, audit: RoundAudit) -> RoundAudit:
        """Tell a round of evaluation."""
        self.evaluation.append(audit)
        for each in audit.rejected:
            log(INFO, "aggregate_evaluate: node %d rejected: %s", each.node_id, each.reason)
        self._write(audit)
        return audit

    def _write(self, audit: RoundAudit) -> None:
        try:
            if self._file is not None:
                audit_file.append(self._file, audit)
            if self._board is not None:
                for name, value in audit.metrics().items():
                    self._board.add_scalar(f"{audit.step}/{name}", value, audit.server_round)
                self._board.flush()
        except OSError as error:  # a full disk does not end a training
            log(WARNING, "the audit of round %d is not written: %s", audit.server_round, error)


def _board(folder: str | Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ByzflowError("tensorboard_dir needs TensorBoard: pip install tensorboard") from None
    return SummaryWriter(str(folder))
