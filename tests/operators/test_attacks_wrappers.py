"""Attacks made of attacks, and what attackers may know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import byzflow
from byzflow.errors import ExtraError, NotEnoughSenders, SpecError


def honest(h: int = 9, d: int = 23, seed: int = 0) -> Tensor:
    return 1 + torch.randn(h, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PLAIN = ("sign_flip", "reverse", "ipm", "alie(z=1.5)", "min_max", "min_sum(direction=unit)", "mimic", "gaussian")


@pytest.mark.parametrize("spec", PLAIN)
def test_colluders_see_their_own_rows(spec: str) -> None:
    x, own = honest(), honest(3, seed=1)
    expected = byzflow.attack(spec, own, f=3)
    name, _, rest = spec.partition("(")
    got = byzflow.attack(f"{name}(knowledge=colluders{', ' + rest if rest else ')'}", x, f=3, own=own)
    torch.testing.assert_close(got, expected)
    assert spec == "gaussian" or not torch.allclose(got, byzflow.attack(spec, x, f=3))


def test_each_sees_its_own_row_alone() -> None:
    x, own = honest(), honest(3, seed=1)
    for kind in (own, list(own), [{"a": row[:4], "b": row[4:]} for row in own]):
        sent = byzflow.attack("sign_flip(knowledge=own)", x, f=3, own=kind)
        flat = [torch.cat([row["a"], row["b"]]) if isinstance(row, dict) else row for row in sent]
        assert torch.allclose(torch.stack(flat), -own)
        assert type(sent) is type(kind)


def test_attackers_alone_do_not_draw_the_same_noise() -> None:
    x, own = honest(), honest(3, seed=1)
    noise = byzflow.attack("gaussian(knowledge=own)", x, f=3, own=own)
    assert torch.equal(noise, byzflow.attack("gaussian", x, f=3))
    added = byzflow.attack("gaussian(knowledge=own, mode=add)", x, f=3, own=own)
    assert torch.allclose(added, noise + own)


def test_rules_that_count_the_honest_rows_know_how_many_there_are() -> None:
    x, own = honest(26), honest(24, seed=1)
    z = byzflow.parse("alie", f=24).shift(26)  # type: ignore[attr-defined]
    sent = byzflow.attack("alie(knowledge=colluders)", x, f=24, own=own)[0]
    assert torch.allclose(sent, own.mean(0) - z * own.std(0))
    zero = byzflow.attack("zero_sum(knowledge=colluders)", x, f=24, own=own)[0]
    assert torch.allclose(zero, -26 / 24 * own.mean(0))
    alone = byzflow.attack("zero_sum(knowledge=own)", x, f=24, own=own)
    assert torch.allclose(alone, -26 / 24 * own)
    with pytest.raises(SpecError, match="outside"):
        byzflow.attack("alie(knowledge=colluders)", x[:3], f=24, own=own)


def test_own_rows_are_asked_for_and_counted() -> None:
    x = honest()
    for spec in ("ipm(knowledge=own)", "ipm(knowledge=colluders)"):
        with pytest.raises(ExtraError, match="pass own="):
            byzflow.attack(spec, x, f=2)
        assert byzflow.attack(spec, x, f=0).shape == (0, 23)
    with pytest.raises(ExtraError, match="one own row for each of f = 2 attackers, got 3"):
        byzflow.attack("ipm(knowledge=own)", x, f=2, own=x[:3])
    with pytest.raises(NotEnoughSenders):
        byzflow.attack("alie(z=1, knowledge=own)", x, f=2, own=x[:2])  # one row has no spread


def test_own_rows_are_not_changed_or_sent_by_reference() -> None:
    x, own = honest(), [row.clone() for row in honest(2, seed=1)]
    before = [row.clone() for row in own]
    for spec in ("mimic(knowledge=own)", "model_replacement(scale=1)", "sampled(attack=ipm, high=0)"):
        for row in byzflow.attack(spec, list(x), f=2, own=own):
            row.fill_(9)
    assert all(torch.equal(a, b) for a, b in zip(own, before, strict=True))


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 3), (0.4, 2), (1.0, 5)])
def test_mixture(share: float, count: int) -> None:
    x = honest()
    sent = byzflow.attack(f"mixture(first=ipm, second=alie(z=1), share={share})", x, f=5)
    assert torch.equal(sent[:count], byzflow.attack("ipm", x, f=5)[:count])
    assert torch.equal(sent[count:], byzflow.attack("alie(z=1)", x, f=5)[count:])


def test_mixture_hands_extras_on() -> None:
    x, own = honest(), honest(4, seed=1)
    spec = "mixture(first=opt_ipm, second=sign_flip(knowledge=own))"
    sent = byzflow.attack(spec, x, f=4, against="median", own=own)
    assert torch.equal(sent[:2], byzflow.attack("opt_ipm", x, f=4, against="median")[:2])
    assert torch.allclose(sent[2:], -own[2:])
    with pytest.raises(ExtraError, match="does not take 'centre'"):
        byzflow.attack(spec, x, f=4, against="median", own=own, centre=x[0])


def test_switching_by_round() -> None:
    x = honest()
    operator = byzflow.parse("switching(first=ipm, second=zero, every=2)", f=2)
    state: dict[str, Any] = {}
    zeros = []
    for _ in range(8):
        result = operator.explain(x, **state)
        zeros.append(not result.value.any())
        state = {**state, **result.state}
    assert zeros == [False, False, True, True, False, False, True, True]
    assert state["round"] == 8


def test_switching_keeps_what_the_idle_attack_learns() -> None:
    x = honest()
    operator = byzflow.parse("switching(first=mimic_adaptive, second=zero)", f=2)
    state: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    for _ in range(4):
        state |= operator.explain(x, **state).state
        alone |= byzflow.parse("mimic_adaptive", f=2).explain(x, **alone).state
    assert state.keys() == alone.keys()
    assert torch.equal(state["direction"], alone["direction"])


def test_sampled_attackers_are_drawn_by_seed_and_round() -> None:
    x = honest()
    operator = byzflow.parse("sampled(attack=zero, low=1, high=3)", f=4)
    patterns = [(operator(x, round=t) == 0).all(1) for t in range(60)]
    counts = [int(pattern.sum()) for pattern in patterns]
    assert set(counts) == {1, 2, 3}
    assert all(torch.stack(patterns).any(0)), "some attacker never attacks"
    again = [(operator(x, round=t) == 0).all(1) for t in range(60)]
    assert all(torch.equal(a, b) for a, b in zip(patterns, again, strict=True))
    other = byzflow.parse("sampled(attack=zero, low=1, high=3, seed=1)", f=4)
    assert any(not torch.equal((other(x, round=t) == 0).all(1), patterns[t]) for t in range(10))
    assert operator.explain(x, round=4).state == {"round": 5}


def test_attackers_that_are_not_drawn_look_honest_and_count_as_honest() -> None:
    x, own = honest(), honest(4, seed=1)
    copies = byzflow.attack("sampled(attack=zero, high=0)", x, f=4)
    assert all(any(torch.equal(row, each) for each in x) for row in copies)
    assert torch.equal(byzflow.attack("sampled(attack=zero, high=0)", x, f=4, own=own), own)
    for t in range(10):
        sent = byzflow.attack("sampled(attack=sign_flip, low=2, high=2)", x, f=4, own=own, round=t)
        idle = [i for i in range(4) if torch.equal(sent[i], own[i])]
        assert len(idle) == 2
        active = next(i for i in range(4) if i not in idle)
        assert torch.allclose(sent[active], -torch.cat([x, own[idle]]).mean(0))


def test_wrappers_nest_and_read_back() -> None:
    spec = "sampled(attack=mixture(first=switching(first=ipm, second=zero), second=alie(z=1.0)), low=4)"
    operator = byzflow.parse(spec, f=4)
    assert byzflow.parse(str(operator)) == operator
    assert operator(honest(), round=3).shape == (4, 23)


def test_the_number_of_attackers_can_change() -> None:
    from dataclasses import replace

    operator = replace(byzflow.parse("mixture(first=ipm, second=zero)", f=1), f=4)  # type: ignore[call-arg]
    sent = operator(honest())
    assert sent.shape == (4, 23)
    assert not sent[2:].any()


def test_wrappers_refuse_what_they_would_ignore() -> None:
    with pytest.raises(SpecError, match="give knowledge=own to the attacks inside"):
        byzflow.parse("mixture(first=ipm, second=zero, knowledge=own)", f=2)
    with pytest.raises(SpecError, match="low must be at most high = 1, got 2"):
        byzflow.parse("sampled(attack=ipm, low=2, high=1)", f=2)
    with pytest.raises(SpecError):
        byzflow.parse("mixture(first=median, second=zero)", f=2)
    with pytest.raises(NotEnoughSenders):
        byzflow.attack("mixture(first=alie(z=1), second=zero)", honest(1), f=2)


def test_rejected_honest_rows_are_reported_once() -> None:
    x = honest()
    x[3, 2] = torch.nan
    for t in range(6):
        result = byzflow.parse("sampled(attack=ipm, low=1, high=2)", f=4).explain(x, round=t)
        assert result.rejected == (3,)
