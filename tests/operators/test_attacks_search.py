"""Attacks that are fitted to a defence: as strong as a dense grid, in bounded time, leaving the defence alone."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor

import byzflow
from byzflow.errors import ExtraError, NotEnoughSenders, SpecError
from byzflow.operators import Operator
from byzflow.rows import Rows
from byzflow_attacks.candidates import SAMPLE, Candidates, largest, most
from byzflow_attacks.directions import StandardDeviation, column_vector

DEFENCES = (
    "trimmed_mean",
    "median",
    "nnm | trimmed_mean",
    "geometric_median",
    "nnm | krum",
    "krum",
    "multi_krum",
    "arc | nnm | median",
    "caf",
    "bulyan",
    "centered_clipping(tau=5.0)",
)


def honest(h: int = 11, d: int = 17, seed: int = 0, offset: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(d, generator=generator, dtype=torch.float64)
    middle = offset * torch.randn(d, generator=generator, dtype=torch.float64)
    x = torch.randn(h, d, generator=generator, dtype=torch.float64) * scale + middle
    x[:3] += 2 * scale * (seed % 2)  # three participants whose data differ
    return x


def line(attack: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a factor t are start + t slope."""
    mean = x.mean(0)
    return (mean, -x.std(0)) if attack == "opt_alie" else (torch.zeros_like(mean), -mean)


def damage(defence: Operator, x: Tensor, row: Tensor, f: int, **state: Any) -> float:
    result = defence(torch.cat([x, row.expand(f, -1)]), **state)
    return float(torch.linalg.vector_norm(result - x.mean(0)))


@pytest.mark.parametrize("attack", ["opt_alie", "opt_ipm"])
@pytest.mark.parametrize("spec", DEFENCES)
def test_as_strong_as_a_dense_grid_of_both_signs(spec: str, attack: str) -> None:
    f = 2
    for seed in (0, 1):
        x = honest(seed=seed)
        start, slope = line(attack, x)
        defence = byzflow.parse(spec, f=f)
        sent = byzflow.attack(attack, x, f=f, against=spec)
        factor = float((sent[0] - start) @ slope / (slope @ slope))
        assert abs(factor) <= 20 + 1e-9
        assert torch.allclose(sent, (start + factor * slope).expand(f, -1))
        grid = [damage(defence, x, start + t * slope, f) for t in torch.linspace(-20, 20, 401).tolist()]
        assert damage(defence, x, sent[0], f) >= 0.95 * max(grid)


@pytest.mark.parametrize("sign", [-1, 1])
def test_takes_the_better_sign(sign: int) -> None:
    x = honest(9, 5)
    x[:2] += sign * 30 * x.std(0)  # a rule that trims one side more than the other is easier to push to the outliers
    defence = byzflow.parse("geometric_median", f=2)
    sent = byzflow.attack("opt_alie", x, f=2, against=defence)
    assert float(((sent[0] - x.mean(0)) / x.std(0)).mean().sign()) == -sign
    start, slope = line("opt_alie", x)
    worse = max(damage(defence, x, start - sign * t * slope, 2) for t in torch.linspace(0, 20, 81).tolist())
    assert damage(defence, x, sent[0], 2) > worse * 1.001


@pytest.mark.parametrize("spec", DEFENCES)
def test_gram_evaluation_is_the_direct_one(spec: str) -> None:
    x, f = honest(offset=2.0), 2
    rows = Rows.of(x)
    candidates = Candidates(rows, [column_vector(rows, StandardDeviation())], f, spec)
    for z in (-3.0, 0.7, 1.5, 12.0):
        row = x.mean(0) - z * x.std(0)
        direct = damage(candidates.defence, x, row, f)
        assert candidates.damage(candidates.mean - z * candidates.vector(0)) == pytest.approx(direct, rel=2e-7)


def test_a_remembering_defence_is_asked_and_not_advanced() -> None:
    x, f = honest(), 2
    defence = byzflow.parse("momentum(beta=0.5) | centered_clipping(tau=1.0)", f=f)
    state: dict[str, Any] = {}
    for _ in range(3):
        state = dict(defence.explain(torch.cat([x, x[:f]]), **state).state)
    before = {k: [v.clone() for v in value] if isinstance(value, list) else value.clone() for k, value in state.items()}
    sent = byzflow.attack("opt_alie", x, f=f, against=defence, against_state=state)
    assert state.keys() == before.keys() == {"momentum", "center"}
    assert torch.equal(state["center"], before["center"])
    assert all(torch.equal(a, b) for a, b in zip(state["momentum"], before["momentum"], strict=True))
    start, slope = line("opt_alie", x)
    grid = [damage(defence, x, start + t * slope, f, **state) for t in torch.linspace(-20, 20, 201).tolist()]
    assert damage(defence, x, sent[0], f, **state) >= 0.95 * max(grid)
    asked, forgot = (Candidates(Rows.of(x), [], f, defence, given) for given in (state, {}))
    direct = damage(defence, x, -2 * x.mean(0), f, **state)
    assert asked.damage(-2 * asked.mean) == pytest.approx(direct, rel=1e-9)
    assert forgot.damage(-2 * forgot.mean) != pytest.approx(direct, rel=1e-3)


def test_the_state_reaches_a_permutation() -> None:
    x, f = honest(8, 6), 2
    defence = byzflow.parse("bucketing | geometric_median(f=1)")
    order = torch.tensor([8, 9, 0, 1, 2, 3, 4, 5, 6, 7])  # both attackers in one bucket
    rows = Rows.of(x)
    candidates = Candidates(rows, [], f, defence, {"permutation": order})
    direct = damage(defence, x, -2 * x.mean(0), f, permutation=order)
    assert candidates.damage(-2 * candidates.mean) == pytest.approx(direct, rel=1e-9)


def test_large_d_column_rules_are_judged_on_a_sample_that_tells_the_same() -> None:
    x, f = honest(9, 3 * SAMPLE, offset=0.2), 2
    defence = byzflow.parse("nnm | trimmed_mean", f=f)
    sent = byzflow.attack("opt_alie", x, f=f, against=defence)
    assert torch.equal(sent, byzflow.attack("opt_alie", x, f=f, against=defence)), "the sample is fixed"
    start, slope = line("opt_alie", x)
    grid = [damage(defence, x, start + t * slope, f) for t in torch.linspace(-20, 20, 81).tolist()]
    assert damage(defence, x, sent[0], f) >= 0.95 * max(grid)


def test_honest_rows_are_untouched() -> None:
    x = honest().float()
    before = x.clone()
    for spec in ("opt_alie", "opt_ipm", "dyn_opt", "hidden_vulnerability", "fang_krum"):
        byzflow.attack(spec, x, f=2, against="krum")
    assert torch.equal(x, before)


@pytest.mark.parametrize("attack", ["opt_alie", "opt_ipm"])
@pytest.mark.parametrize("spec", ["nnm | geometric_median", "nnm | trimmed_mean"])
def test_time_of_200_evaluations(attack: str, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(10, 1_000_000, generator=torch.Generator().manual_seed(0))
    operator = byzflow.parse(attack, f=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.perf_counter()
        operator(x, against=spec)
        took = time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)
    with capsys.disabled():
        print(f"\n{attack} against {spec}: 200 evaluations, 10 x 1,000,000, one thread: {took:.2f} s")
    assert took < 10  # evaluations on the data would take minutes


def test_errors_name_what_is_missing() -> None:
    x = honest(5)
    with pytest.raises(ExtraError, match="pass against"):
        byzflow.attack("opt_alie", x, f=2)
    with pytest.raises(SpecError, match="nnm is no aggregation"):
        byzflow.attack("opt_alie", x, f=2, against="nnm")
    with pytest.raises(SpecError, match="ipm is no aggregation"):
        byzflow.attack("opt_alie", x, f=2, against="ipm")
    with pytest.raises(NotEnoughSenders, match="krum"):
        byzflow.attack("opt_alie", x, f=3, against="krum")
    with pytest.raises(ExtraError, match="does not take 'center'"):
        byzflow.attack("opt_alie", x, f=2, against="median", against_state={"center": x[0]})


@pytest.mark.parametrize("limit", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("attack", ["opt_alie", "opt_ipm"])
def test_limit_is_kept(attack: str, limit: float) -> None:
    x = honest()
    start, slope = line(attack, x)
    sent = byzflow.attack(f"{attack}(limit={limit})", x, f=2, against="mean")
    factor = float((sent[0] - start) @ slope / (slope @ slope))
    assert factor == pytest.approx(limit)  # the mean is moved most by the largest


def test_most_finds_a_narrow_peak_and_a_cliff() -> None:
    asked: list[float] = []

    def value(u: float) -> float:
        asked.append(u)
        return u if 0 <= u <= 1.2345 else 0.3 * abs(u) / 20

    assert most(value, -20, 20, 1.0) == pytest.approx(1.2345, rel=1e-2)
    assert len(asked) == len(set(asked)) == 200
    assert most(lambda u: -((u + 0.01) ** 2), -20, 20, 1.0) == pytest.approx(-0.01, abs=1e-3)


def test_largest_finds_the_edge_and_gives_up_at_zero() -> None:
    assert largest(lambda u: u <= 3.25, 10.0) == pytest.approx(3.25, rel=1e-4)
    assert largest(lambda u: u <= 3.25, 3.0) == 3.0
    assert largest(lambda u: False, 10.0) == 0.0


@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
@pytest.mark.parametrize("spec", ["krum", "multi_krum", "bulyan", "nnm | krum"])
def test_dyn_opt_goes_to_the_edge_of_what_is_selected(spec: str, direction: str) -> None:
    x, f = honest(13, 20), 2
    mean = x.mean(0)
    sent = byzflow.attack(f"dyn_opt(direction={direction})", x, f=f, against=spec)[0]
    step = sent - mean
    ways = {"std": -x.std(0), "unit": -mean, "sign": -mean.sign()}
    assert torch.allclose(step / step.norm(), ways[direction] / ways[direction].norm(), atol=1e-9)
    candidates = Candidates(Rows.of(x), [Rows.of([step])], f, spec)
    assert candidates.selected(candidates.mean + candidates.vector(0))
    assert not candidates.selected(candidates.mean + 1.001 * candidates.vector(0))
    if spec == "krum":
        assert torch.allclose(byzflow.aggregate(spec, torch.cat([x, sent.expand(f, -1)]), f=f), sent)


def test_dyn_opt_takes_the_most_harmful_where_nothing_is_selected() -> None:
    x, f = honest(), 2
    defence = byzflow.parse("trimmed_mean", f=f)
    sent = byzflow.attack("dyn_opt", x, f=f, against=defence)[0]
    grid = [damage(defence, x, x.mean(0) - t * x.std(0), f) for t in torch.linspace(0, 20, 401).tolist()]
    assert damage(defence, x, sent, f) >= 0.95 * max(grid)


def test_hidden_vulnerability_is_off_in_one_coordinate() -> None:
    x, f = honest(9, 50), 2
    sent = byzflow.attack("hidden_vulnerability(coordinate=7)", x, f=f, against="krum")
    step = sent[0] - x.mean(0)
    assert step[7] > 3 * x.std(0)[7]
    assert torch.allclose(torch.cat([step[:7], step[8:]]), torch.zeros(49, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(byzflow.aggregate("krum", torch.cat([x, sent]), f=f), sent[0])
    every = byzflow.attack("hidden_vulnerability", x, f=f, against="krum")[0] - x.mean(0)
    assert torch.allclose(every, every[:1].expand(50))
    named = [{"a": row[:5], "b": row[5:]} for row in x]
    again = byzflow.attack("hidden_vulnerability(coordinate=7)", named, f=f, against="krum")
    assert torch.allclose(torch.cat([again[0]["a"], again[0]["b"]]), sent[0])
    with pytest.raises(SpecError, match="below the number of coordinates, 50"):
        byzflow.attack("hidden_vulnerability(coordinate=50)", x, f=f, against="krum")


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_fang_krum_is_picked(offset: float) -> None:
    f, received = 3, torch.full((30,), offset, dtype=torch.float64)
    for seed in range(5):
        x = honest(10, 30, seed) + received
        extras = {"received": received} if offset else {}
        sent = byzflow.attack("fang_krum", x, f=f, **extras)
        step = sent[0] - received
        lam = float(step.abs().mean())
        assert torch.allclose(step, -lam * (x.mean(0) - received).sign())
        picked = byzflow.aggregate("krum", torch.cat([x, sent]), f=f)
        assert torch.allclose(picked, sent[0])
        halvings = math.log2(_upper_bound(x, received, f) / lam)
        assert halvings == pytest.approx(round(halvings), abs=1e-6)
        if round(halvings):  # twice the step was not picked
            others = torch.cat([x, (received + 2 * step).expand(f, -1)])
            assert not torch.allclose(byzflow.aggregate("krum", others, f=f), others[-1])


def _upper_bound(x: Tensor, received: Tensor, f: int) -> float:
    h, d = x.shape
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values
    scores = distances[:, 1 : h - 1].sum(1)
    away = torch.linalg.vector_norm(x - received, dim=1)
    return float(scores.min() / ((h - f - 1) * d**0.5) + away.max() / d**0.5)
