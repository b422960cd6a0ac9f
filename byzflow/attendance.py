"""What of a rule is left for those who came."""

from __future__ import annotations

from byzflow.errors import NotEnoughSenders, RowsError
from byzflow.operators import Operator


def shrunk_for(operator: Operator, n: int, malformed: int, silent: int) -> Operator:
    """The operator for n rows: f less the malformed ones, and less silent ones as far as it has to be.

    Raises RowsError without any row, NotEnoughSenders if there are too few for every f that is left.
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
