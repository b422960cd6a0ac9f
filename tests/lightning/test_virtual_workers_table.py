"""Rule x attack x momentum on handwritten digits, ten workers of whom three lie: momentum is what saves the rules."""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

from tests.lightning.small import lightning_as_it_is

EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_digits.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lightning_digits", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with lightning_as_it_is():
        spec.loader.exec_module(module)
    return module


def accuracy(example: ModuleType, rule: str, attack: str | None, momentum: float) -> float:
    with lightning_as_it_is():
        return float(example.accuracy(rule, attack, momentum))


def test_momentum_rescues_the_trimmed_mean_under_foe(example: ModuleType) -> None:
    assert accuracy(example, "trimmed_mean", "foe(tau=3)", 0.0) < 0.2
    assert accuracy(example, "trimmed_mean", "foe(tau=3)", 0.9) > 0.7


@pytest.mark.slow
def test_the_table(example: ModuleType) -> None:
    cells = {
        each: accuracy(example, *each) for each in product(example.RULES, (None, *example.ATTACKS), example.MOMENTA)
    }
    print({key: round(value, 3) for key, value in cells.items()})
    for momentum in example.MOMENTA:
        assert cells["mean", None, momentum] > 0.85
        assert cells["mean", "foe(tau=3)", momentum] < 0.2  # no momentum helps the mean
    for rule, attack in product(example.RULES[1:], example.ATTACKS):
        without, with_ = (cells[rule, attack, momentum] for momentum in example.MOMENTA)
        assert with_ > 0.6, (rule, attack)
        assert with_ > without + 0.05, (rule, attack)


def test_the_example_prints_its_table(
    example: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning_digits.py", "--steps", "3", "--rules", "median", "--attacks", "nan"])
    with lightning_as_it_is():
        example.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "accuracy with n = 10, f = 3; worker momentum 0.0 -> 0.9"
    assert lines[1].split() == ["none", "nan"]
    assert lines[2].startswith("median")
    assert lines[2].count("->") == 2
