"""What of a rule is left for those who came, and what stands for those who did not."""

from __future__ import annotations

from byzflow.errors import NotEnoughSenders, RowsError
from byzflow.operators import Operator


def shrunk_for(operator: Operator, n: int, malformed: int, silent: int) -> Operator:
    """The operator for n rows: f less the malformed ones, and less silent ones as far as it has to be.

    That takes the silent for liars. A node with a row of its own need not: see `copies_for`.

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


def copies_for(operator: Operator, f: int, n: int, malformed: int, silent: int) -> int:
    """How many silent neighbours a node's own row stands for, beside n rows: as many as leave f whole.

    A copy of the own row is honest, so at most f rows lie, whoever of the silent is late, or a liar. The rule becomes
    valid by them; one without an f of its own, such as the median, gets 2f + 1 rows.
    """
    least = max(operator.shrunk(malformed).min_senders, 2 * max(0, f - malformed) + 1)
    return min(silent, max(0, least - n))
