"""The rule for the rows that are left of those that were asked for."""

from __future__ import annotations

import byzflow
from byzflow.errors import NotEnoughSenders, RowsError


def rule_for(operator: byzflow.Operator, kept: int, malformed: int, silent: int) -> byzflow.Operator:
    """The operator for `kept` rows: its f less the malformed ones, and less silent ones as far as it has to be.

    Only a liar sends what is malformed: one of the f is found. The silent may be honest, and f must still cover the
    liars. Raises NotEnoughSenders if no such f is valid, RowsError if nothing is kept.
    """
    if not kept:
        raise RowsError("no reply counts")
    for gone in range(silent + 1):
        shrunk = operator.shrunk(malformed + gone)
        try:
            shrunk.check(kept)
            return shrunk
        except NotEnoughSenders as error:
            problem = error
    raise problem
