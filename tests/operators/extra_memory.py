"""Prints what one call of every installed rule needs beside its rows and its answer, as JSON: name -> bytes.

Each call is made in a process of its own, forked from one that has loaded everything and computed nothing.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import torch

import byzflow
from benchmarks.case import size
from benchmarks.memory import peak
from byzflow.operators import Operator
from byzflow.testing import sample_extras
from tests.operators.test_contract import instance

WARM = 4096  # coordinates of a first call, which loads what is loaded once


def extra_bytes(operator: Operator, rows: list[torch.Tensor]) -> int:
    """At the peak of one call, without the answer."""
    first = torch.stack([row[:WARM] for row in rows])
    extras = sample_extras(operator, first)
    operator(list(first), **extras)
    grown = dict.fromkeys(extras, rows[0])  # vectors, all of them
    result, _, extra = peak(lambda: operator(rows, **grown))
    assert extra is not None
    return extra - size(result)


def main(n: int, d: int) -> None:
    """One line of JSON a rule, for n float32 rows of d coordinates."""
    generator = np.random.default_rng(0)  # torch would start its threads, which do not survive a fork
    rows = [torch.from_numpy(generator.standard_normal(d, dtype=np.float32)) for _ in range(n)]
    for entry in (*byzflow.installed().of_kind("aggregator"), *byzflow.installed().of_kind("pre-aggregator")):
        child = os.fork()
        if not child:
            status = 1
            try:
                print(json.dumps({entry.operator.name: extra_bytes(instance(entry, 1), rows)}), flush=True)
                status = 0
            finally:
                os._exit(status)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
