"""`python -m benchmarks.flower_round`: a Flower server's step in a round, beside Flower's own strategies.

It is the section `flower` of `benchmarks.operators`, with its options, on models of few and of many arrays: what is
done once an array counts too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import operators

LEAVES = ("8", "150", "600")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = sys.argv[1:] if arguments is None else arguments
    operators.main(["--section", "flower", "--leaves", *LEAVES, *given])


if __name__ == "__main__":
    main()
