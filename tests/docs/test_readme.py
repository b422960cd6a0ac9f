"""The README keeps its word: every example runs as it stands, and does what the text says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from byzflow import aggregate
from byzflow.testing import check_operator
from tests.docs.pages import ROOT, blocks, commands, installed_with, run_python, run_shell

README = ROOT / "README.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    return run_python(README)


def test_there_are_examples_for_flower_lightning_python_and_plugin_authors() -> None:
    assert len(blocks(README.read_text(), "python")) == 4
    assert len(commands(README)) >= 4


def test_flower_survives_two_liars(names: dict[str, Any]) -> None:
    (weights,) = names["result"].arrays.values()
    assert weights.numpy() == pytest.approx([1 - 0.5**3] * 4)
    assert [each.node_id for each in names["strategy"].audit[-1].rejected] == [106]


def test_python_names_the_row_with_nan(names: dict[str, Any]) -> None:
    assert names["step"].rejected == (9,)
    assert names["step"].weights[8] < 0.01
    assert names["step"].value.mean() == pytest.approx(1, abs=0.2)


def test_the_plugin_works_by_name_and_passes_the_contract(names: dict[str, Any]) -> None:
    registry = installed_with(sys.modules[names["__name__"]])
    with mock.patch("byzflow.spec.installed", return_value=registry):
        check_operator("midrange")
        assert aggregate("nnm | midrange", torch.tensor([[1.0], [2.0], [4.0]]), f=0).item() == pytest.approx(7 / 3)


@pytest.mark.parametrize("command", commands(README))
def test_commands(command: str, tmp_path: Path) -> None:
    done = run_shell(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert len(targets) > 5
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert not missing
