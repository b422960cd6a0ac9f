"""The benchmark of accuracy under attack: a short run gives every cell, and its table goes between a file's marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.federation_accuracy import CASES, MARKS, Cell, advice, main, markdown


def test_a_short_run_writes_its_table_between_the_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    main(["--only", "ring", "--rounds", "2", "--into", str(page)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{MARKS[1]}\nafter\n")
    assert "old" not in text
    assert text.count("| ring |") == 2
    assert "7 runs" in capsys.readouterr().out


def test_what_is_below_95_per_cent_is_bold() -> None:
    case = CASES[0]
    rules = [("mean", "sign_flip"), ("mean", "ipm"), ("mean", "alie(z=1.5)")]
    rules += [(case.rule, attack) for _, attack in rules]
    found = [Cell(case.name, "mean", "", 1.0, 1.0, 1.0)]
    found += [Cell(case.name, rule, attack, 0.9 if rule == "mean" else 0.96, 0.5, 1.0) for rule, attack in rules]
    mean, robust = markdown(found, 1, 0)[2:4]
    assert mean.count("**0.900**") == 3
    assert "**" not in robust


def test_the_adviser_tells_proofs_from_observations() -> None:
    told = {case.name: advice(case, case.rule) for case in CASES}
    assert told["star"].startswith("certified for f = 2 of n = 10")
    assert told["ring"].endswith("heuristic")
    assert advice(CASES[0], "mean") == "one Byzantine row moves it anywhere"
