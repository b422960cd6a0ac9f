"""The round ledger: what it keeps through a crash, and what its checker finds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import byzflow
from byzflow.cli.ledger import command
from byzflow.errors import ByzflowError
from byzflow.ledger import Entry, Fault, Ledger, as_bytes, check, digest, entries, from_bytes

SPECS = ("median", "nnm(f=1) | trimmed_mean(f=1)", "krum(f=1)", "geometric_median")


def run(folder: Path, node: str = "a", rounds: int = 4) -> Path:
    """A true ledger of some rounds."""
    draws = torch.Generator().manual_seed(0)
    with Ledger(folder / f"{node}.jsonl", node, folder / "inputs") as ledger:
        for k in range(rounds):
            inputs = {f"peer{i}": torch.randn(33, generator=draws) for i in (3, 0, 4, 1, 2)}
            output = byzflow.aggregate(SPECS[k % 4], [inputs[peer] for peer in sorted(inputs)])
            ledger.record(k, SPECS[k % 4], inputs, output)
    return folder / f"{node}.jsonl"


def change(file: Path, number: int, edit: Callable[[dict[str, Any]], None]) -> None:
    lines = file.read_text().splitlines()
    entry = json.loads(lines[number])
    edit(entry)
    lines[number] = json.dumps(entry)
    file.write_text("\n".join(lines) + "\n")


def test_a_true_ledger_has_no_faults(tmp_path: Path) -> None:
    file = run(tmp_path)
    assert check(file, tmp_path / "inputs") == []
    read = list(entries(file))
    assert [entry.round for entry in read if isinstance(entry, Entry)] == [0, 1, 2, 3]
    assert isinstance(read[0], Entry)
    assert list(read[0].inputs) == ["peer0", "peer1", "peer2", "peer3", "peer4"]
    for kept in (tmp_path / "inputs").iterdir():
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == kept.name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 2)])
def test_arrays_come_back_bit_by_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = (torch.randn(shape) * 9).to(dtype)
    again = from_bytes(as_bytes(value))
    assert again.dtype == dtype
    assert torch.equal(again, value)
    assert digest(again) == digest(value)


def test_digests_tell_apart_what_has_the_same_bytes() -> None:
    x = torch.zeros(6)
    values = [x, x.reshape(2, 3), x.to(torch.int32), {"w": x}, {"v": x}, {"w": x[:3], "b": x[3:]}, x[:5], -x]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(x) == digest(x.numpy()) == digest(torch.zeros(12)[::2])
    nan = np.array([np.nan, 1e30, -0.0], np.float32)
    assert digest(from_bytes(as_bytes(nan))) == digest(nan)


def test_state_dicts_and_extras(tmp_path: Path) -> None:
    inputs = {f"{i}": {"w": torch.randn(2, 3), "b": torch.randn(3)} for i in range(5)}
    centre = torch.randn(7)
    rows = {f"{i}": torch.randn(7) for i in range(5)}
    with Ledger(tmp_path / "a.jsonl", "a", tmp_path / "inputs") as ledger:
        ledger.record(0, "median", inputs, byzflow.aggregate("median", list(inputs.values())))
        spec = "centered_clipping(tau=1.0)"
        output = byzflow.aggregate(spec, list(rows.values()), center=centre)
        ledger.record(1, spec, rows, output, {"center": centre})
        spec = "bucketing(s=2, seed=7) | median"  # draws by its seed and the round
        output = byzflow.aggregate(spec, list(rows.values()), round=2)
        ledger.record(2, spec, rows, output, {"round": 2})
    assert check(tmp_path / "a.jsonl", tmp_path / "inputs") == []


def test_a_lost_input_a_changed_bit_and_a_doubled_round_are_found(tmp_path: Path) -> None:
    file = run(tmp_path)
    read = [entry for entry in entries(file) if isinstance(entry, Entry)]
    (tmp_path / "inputs" / read[1].inputs["peer2"]).unlink()
    kept = tmp_path / "inputs" / read[2].inputs["peer0"]
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[0]]) + "\n")
    faults = check(file, tmp_path / "inputs")
    found = {(fault.round, fault.what.split(":")[0]) for fault in faults}
    assert found == {
        (1, "the input of 'peer2' is lost"),
        (2, "the input of 'peer0' was changed"),
        (0, "2 entries for one round"),
        (0, "recorded after round 3"),
    }
    assert {fault.node for fault in faults} == {"a"}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda e: e.update(output=digest(torch.zeros(33))), "median of the inputs is"),
        (lambda e: e.update(operator="mean"), "mean of the inputs is"),
        (lambda e: e.update(operator="nothing"), "unknown operator 'nothing'"),
        (lambda e: e["inputs"].pop("peer1"), "median of the inputs is"),
        (lambda e: e["inputs"].update(peer1=e["inputs"]["peer0"]), "median of the inputs is"),
        (lambda e: e["inputs"].update(peer1="../a.jsonl"), "has no SHA-256 for a digest"),
        (lambda e: e.update(inputs=dict(reversed(e["inputs"].items()))), "the senders are not in order"),
        (lambda e: e.update(inputs={}), "no rows"),
        (lambda e: e.pop("output"), "line 1 of a.jsonl does not read"),
    ],
)
def test_what_does_not_fit_is_told(edit: Any, words: str, tmp_path: Path) -> None:
    file = run(tmp_path)
    change(file, 0, edit)
    (fault,) = check(file, tmp_path / "inputs")
    assert words in fault.what
    assert fault.round in (0, None)


def test_a_torn_last_line_is_no_round_and_the_ledger_goes_on(tmp_path: Path) -> None:
    file = run(tmp_path)
    whole = file.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        file.write_bytes(whole[:-cut])
        assert len(list(entries(file))) == 3
        assert check(file, tmp_path / "inputs") == []
        with Ledger(file, "a", tmp_path / "inputs") as ledger:
            ledger.record(3, "median", {"x": torch.ones(2)}, torch.ones(2))
        assert check(file, tmp_path / "inputs") == []
        assert len(list(entries(file))) == 4
    file.write_bytes(whole.replace(b'"node"', b'"nod', 1))
    assert check(file, tmp_path / "inputs") == [Fault("a", None, "line 1 of a.jsonl does not read")]


def test_the_command_names_node_and_round(tmp_path: Path) -> None:
    run(tmp_path, "a")
    file = run(tmp_path, "b", 3)
    result = CliRunner().invoke(command, ["check", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "2 ledgers, 7 rounds" in result.output
    change(file, 2, lambda entry: entry.update(output="0" * 64))
    result = CliRunner().invoke(command, ["check", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith("node b, round 2: krum(f=1) of the inputs is ")
    result = CliRunner().invoke(command, ["check", str(tmp_path), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.output)["faults"][0]["round"] == 2
    with pytest.raises(ByzflowError, match="holds no ledger"):
        CliRunner().invoke(command, ["check", str(tmp_path / "inputs")], catch_exceptions=False)
    with pytest.raises(ByzflowError, match="no folder: give the one that the ledgers' keep_inputs= named"):
        CliRunner().invoke(command, ["check", str(tmp_path), "--inputs", "nowhere"], catch_exceptions=False)
    (tmp_path / "c.jsonl").mkdir()
    with pytest.raises(ByzflowError, match=r"c.jsonl cannot be written: Is a directory"):
        Ledger(tmp_path / "c.jsonl", node="c")
    with pytest.raises(ByzflowError, match=r"c.jsonl cannot be read: Is a directory"):
        CliRunner().invoke(command, ["check", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize(
    "data", [b"", b"[]\n1", b'[[null,"float32",[2]]]\n123', b'[[null,"save",[1]]]\n1', b"{}\n", b"\xff\n"]
)
def test_stored_arrays_that_do_not_read(data: bytes) -> None:
    with pytest.raises(ByzflowError, match="a stored array"):
        from_bytes(data)


def test_rounds_that_are_made_again_are_dropped_and_the_ledger_goes_on(tmp_path: Path) -> None:
    file = run(tmp_path)
    whole = file.read_bytes()
    for done in (4, 2, 0):
        with Ledger(file, "a", tmp_path / "inputs") as ledger:
            ledger.rewind(done)
            assert [each.round for each in entries(file) if isinstance(each, Entry)] == list(range(done))
            assert whole.startswith(file.read_bytes())
            ledger.record(done, "median", {"x": torch.ones(2)}, torch.ones(2))
        assert check(file, tmp_path / "inputs") == []
        assert len(list(entries(file))) == done + 1
