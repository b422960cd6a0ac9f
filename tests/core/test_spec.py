"""The grammar, the round trip and the message for every kind of wrong spec."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import byzflow
from byzflow.errors import ByzflowError, NotEnoughSenders, SpecError, UnknownOperator


@pytest.mark.parametrize(
    ("spec", "written"),
    [
        ("krum", "krum(f=2)"),
        (" KRUM ( ) ", "krum(f=2)"),
        ("multi-krum(m=3,)", "multi_krum(f=2, m=3)"),
        ("krum(f=1)", "krum(f=1)"),
        ("arc|nnm |  cwtm", "arc(f=2) | nnm(f=2) | trimmed_mean(f=2)"),
        ("Clipping(c=3) | rfa(nu=1e-3)", "clipping(c=3.0) | geometric_median(f=2, nu=0.001)"),
        ("krum(neighbors=n-f-1, strict=false)", "krum(f=2, neighbors=n-f-1, strict=false)"),
        ('alie(z="paper-v1")', "alie(f=2, z=paper-v1)"),
        ("alie(z=1)", "alie(f=2, z=1.0)"),
        ("trimmed_mean(beta=0.1)", "trimmed_mean(f=2, beta=0.1)"),
    ],
)
def test_reads_and_writes(spec: str, written: str) -> None:
    operator = byzflow.parse(spec, f=2)
    assert str(operator) == written
    assert byzflow.parse(str(operator)) == operator


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "the end where an operator's name"),
        ("nnm(f=1) |", "the end where an operator's name"),
        ("krum(f=2", "the end where ','"),
        ("krum(f)", "')' where '='"),
        ("krum(f=)", "')' where a value for krum's f"),
        ("krum(2)", "no parameter '2'"),
        ("krum(g=2)", "krum has no parameter 'g'"),
        ("krum(f=1, f=2)", "f is given twice"),
        ("krum(f=1) median", "'median' where the end or '|'"),
        ("krum", "krum needs f, an int >= 0: write krum(f=...) or pass f=..."),
        ("krum(f=-1)", "f must be an int >= 0, got -1"),
        ("krum(f=1.5)", "f must be an int >= 0, got 1.5"),
        ("krum(f=true)", "f must be an int >= 0, got True"),
        ("krum(f=1, power=3)", "power must be 1 or 2 or 4, got 3"),
        ("clipping(c=nan)", "c must be a finite number > 0, got nan"),
        ("clipping(c=0)", "c must be a finite number > 0, got 0"),
        ("trimmed_mean", "trimmed_mean needs f"),
        ("trimmed_mean(beta=0.5)", "beta must be a finite number >= 0 and < 0.5 or none"),
        ("median | krum(f=1)", "median must be the last stage"),
        ("nnm(f=1) | alie(f=1)", "an attack cannot follow"),
        ("krum(f=1) ?", "'?' where the end"),
        ("(((", "'(' where an operator's name"),
        ("krum('", "cannot read"),
        ("a" * 20_000, "at most 10000 characters"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        byzflow.parse(spec)
    assert words in str(caught.value)


def test_unknown_operator_suggests() -> None:
    with pytest.raises(UnknownOperator, match="did you mean trimmed_mean"):
        byzflow.parse("trimed_mean", f=1)


def test_a_suggestion_is_of_the_kind_that_is_wanted() -> None:
    with pytest.raises(UnknownOperator, match=r"unknown attack 'trimed_mean'; did you mean fang_trimmed_mean\?$"):
        byzflow.attack("trimed_mean", [1.0], f=1)
    with pytest.raises(UnknownOperator, match="unknown operator 'fang_krun'") as caught:
        byzflow.aggregate("nnm | fang_krun", [1.0], f=1)
    assert "fang_krum" not in str(caught.value)
    with pytest.raises(UnknownOperator, match="did you mean fang_krum"):
        byzflow.parse("fang_krun", f=1)


def test_not_a_string() -> None:
    wrong: Any = 3
    with pytest.raises(SpecError, match="got int"):
        byzflow.parse(wrong)


@pytest.mark.parametrize(
    ("spec", "n", "words"),
    [
        ("krum", 6, "krum(f=2) needs at least 7 senders, got 6"),
        ("median", 4, "median(f=2) needs at least 5 senders, got 4"),
        ("arc | krum", 6, "arc(f=2) | krum(f=2) needs at least 7 senders, got 6"),
        ("bucketing | median", 8, "needs at least 9 senders, got 8: median(f=2) needs at least 5 senders, got 4"),
    ],
)
def test_too_few_senders_names_needed_and_given(spec: str, n: int, words: str) -> None:
    import torch

    with pytest.raises(NotEnoughSenders) as caught:
        byzflow.aggregate(spec, torch.randn(n, 3), f=2)
    assert words in str(caught.value)


def test_aggregate_and_attack_do_not_mix() -> None:
    import torch

    with pytest.raises(SpecError, match="is an attack"):
        byzflow.aggregate("ipm", torch.ones(3, 2), f=1)
    with pytest.raises(SpecError, match="is no attack"):
        byzflow.attack("median", torch.ones(3, 2), f=1)


@given(st.text(max_size=60))
def test_any_text_reads_or_raises_a_byzflow_error(text: str) -> None:
    try:
        operator = byzflow.parse(text, f=1)
    except ByzflowError:
        return
    assert byzflow.parse(str(operator)) == operator


@given(st.integers(0, 9), st.floats(1e-3, 1e6), st.booleans(), st.sampled_from(["n-f-1", "n-f-2"]))
def test_round_trip(f: int, c: float, strict: bool, neighbors: str) -> None:
    text = f"clipping(c={c!r}) | krum(f={f}, neighbors={neighbors}, strict={str(strict).lower()})"
    operator = byzflow.parse(text)
    assert byzflow.parse(str(operator)) == operator
