"""The rule for the rows that are left of those that were asked for."""

from __future__ import annotations

import byzflow
from byzflow.errors import NotEnoughSenders, RowsError


def shrunk_for(operator: byzflow.Operator, n: int, malformed: int, silent: int) -> byzflow.Operator:
    """The operator for n rows: its f less the malformed ones, and less silent ones as far as it has to be.

    Only a liar sends what is malformed: one of the f is found. The silent may be honest, and f must still cover the
    liars. Raises NotEnoughSenders if no such f is valid, RowsError if n is 0.
    """
    if not n:
        raise RowsError("no reply counts")
    for gone in range(silent + 1):
        smaller = operator.shrunk(malformed + gone)
        try:
            smaller.check(n)
            return smaller
        except NotEnoughSenders as error:
            problem = error
    raise problem
