"""An operator on shards of the rows, one a thread, gives the parts of what it gives on the whole rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import byzflow
from byzflow.engine.report import Aggregation
from byzflow.errors import NonFiniteRows, NotEnoughSenders, RowsError
from byzflow.rows import Rows

PLACES = 3
RULES = [
    "mean", "median", "trimmed_mean(f=2)", "meamed(f=2)", "krum(f=2)", "multi_krum(f=2)", "geometric_median",
    "mda(f=2)", "cge(f=2)", "centered_clipping(tau=2.0)", "nnm(f=2) | median", "caf(f=2)", "faba(f=2)", "phocas(f=2)",
    "arc(f=2) | nnm(f=2) | trimmed_mean(f=2)", "bucketing(s=2) | krum(f=1)", "momentum | median", "foolsgold",
    "clipped_clustering",
]  # fmt: skip


class Sum:
    """An all_reduce among threads, in the order of the places."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(PLACES, timeout=60)
        self.parts: dict[int, Tensor] = {}

    def at(self, place: int) -> Callable[[Tensor], Tensor]:
        def total(part: Tensor) -> Tensor:
            self.parts[place] = part
            self.barrier.wait()
            result = torch.stack([self.parts[k] for k in range(PLACES)]).sum(0)
            self.barrier.wait()
            return result

        return total


def on_shards(spec: str, x: Tensor, states: Any = ({},) * PLACES) -> list[Aggregation | Exception]:
    cut = Sum()

    def run(place: int) -> Aggregation | Exception:
        try:
            rows = Rows.of(x.tensor_split(PLACES, dim=1)[place]).shard(cut.at(place))
            return byzflow.parse(spec).explain(rows, **states[place])
        except Exception as error:
            return error

    with ThreadPoolExecutor(PLACES) as pool:
        return list(pool.map(run, range(PLACES)))


def values(results: list[Aggregation | Exception]) -> list[Aggregation]:
    for each in results:
        if isinstance(each, Exception):
            raise each
    return [each for each in results if isinstance(each, Aggregation)]


@pytest.mark.parametrize("bad", [False, True], ids=["finite", "one NaN"])
@pytest.mark.parametrize("d", [1, 2, 1000])
@pytest.mark.parametrize("spec", RULES)
def test_shards_give_the_parts_of_the_whole(spec: str, d: int, bad: bool) -> None:
    x = torch.randn(9, d, generator=torch.Generator().manual_seed(d)) + 3
    if bad:
        x[4, d - 1] = torch.nan  # in the last shard alone
    whole = byzflow.parse(spec).explain(x)
    parts = values(on_shards(spec, x))
    torch.testing.assert_close(torch.cat([each.value for each in parts]), whole.value, rtol=1e-5, atol=1e-6)
    for each in parts:
        assert each.rejected == whole.rejected == ((4,) if bad else ())
        assert each.operator == whole.operator
        assert (each.weights is None) == (whole.weights is None)
        if each.weights is not None and parts[0].weights is not None:
            assert torch.equal(each.weights, parts[0].weights)
            if d != 1000:  # of many columns the audit sees a sample
                torch.testing.assert_close(each.weights, whole.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", ["momentum | median", "centered_clipping(tau=2.0)", "foolsgold", "clipped_clustering"])
def test_state_stays_on_its_shard(spec: str) -> None:
    whole: Any = {}
    states: list[Any] = [{} for _ in range(PLACES)]
    for step in range(3):
        x = torch.randn(6, 50, generator=torch.Generator().manual_seed(step))
        expected = byzflow.parse(spec).explain(x, **whole)
        parts = values(on_shards(spec, x, states))
        torch.testing.assert_close(torch.cat([each.value for each in parts]), expected.value, rtol=1e-5, atol=1e-6)
        whole, states = expected.state, [each.state for each in parts]


def test_an_error_is_the_same_everywhere() -> None:
    x = torch.randn(5, 12)
    x[:, 2] = torch.nan  # in the first shard alone
    for each in on_shards("median", x):
        assert isinstance(each, NonFiniteRows)
    x = torch.randn(4, 12)
    x[3, 0] = torch.inf
    x[1, 11] = torch.nan
    for each in on_shards("krum(f=0)", x):
        assert isinstance(each, NotEnoughSenders)


@pytest.mark.parametrize("spec", ["layerwise(rule=median)", "dnc(f=1)", "flame(f=1)"])
def test_rules_that_look_at_whole_rows_are_refused(spec: str) -> None:
    for each in on_shards(spec, torch.randn(7, 30)):
        assert isinstance(each, RowsError)
