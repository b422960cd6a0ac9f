"""The strategy matrix in short; docs/flower.md has the whole of it."""

from __future__ import annotations

import pytest

from benchmarks import flower_matrix


@pytest.mark.parametrize("name", flower_matrix.ROWS)
def test_with_the_mean_and_no_attack_it_is_the_strategy_alone(name: str) -> None:
    row = flower_matrix.ROWS[name]
    with flower_matrix.quick():
        alone, wrapped = (flower_matrix.run(row, s, "none", 2) for s in (row.alone(), row.robust("mean")))
    assert flower_matrix.apart(alone, wrapped) < 1e-6
    assert flower_matrix.apart(alone, flower_matrix.ArrayRecord(flower_matrix.make_model(0).state_dict())) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", flower_matrix.ROWS)
def test_a_robust_rule_goes_on_where_the_mean_does_not(name: str) -> None:
    with flower_matrix.quick():
        measured = flower_matrix.measure(name, 2, ("mean", "arc | nnm | geometric_median"), ("sign_flip(scale=8)",))
    mean, robust = measured["cells"].values()
    assert robust > mean + 2


def test_the_table() -> None:
    rows = [{"strategy": "FedAvg", "alone": 90.4, "off": 2e-8, "cells": {"a | b, none": 80.6, "a | b, alie": 9.2}}]
    assert flower_matrix.table(rows).splitlines() == [
        "| strategy | alone | off | `a \\| b` |",
        "|---|---|---|---|",
        "| FedAvg | 90 | 2e-08 | 81 / 9 |",
    ]
