"""Checkpoints: what was saved comes back to the bit, a torn file never does, and the one before it then counts."""

import math

import numpy as np
import pytest
import torch

from byzflow.errors import CheckpointError
from byzflow.federation.checkpoint import load, previous, read, save


def test_what_was_saved_comes_back(tmp_path):
    file = tmp_path / "sub" / "state.safetensors"
    state = {
        "node": {"vector": torch.randn(5), "buffer/mean": torch.tensor(3, dtype=torch.int64), "position": 2**70},
        "array": np.arange(4.0)[::2],
        "halves": torch.tensor([1.5, math.nan]).to(torch.bfloat16),
        "empty": torch.empty(0, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "numbers": {"float": 0.1, "nan": math.nan, "inf": -math.inf, "flag": True},
        "text": "naïve\x1f",
        "nothing": {},
    }
    save(file, state)
    back = load(file)
    assert back.keys() == state.keys()
    torch.testing.assert_close(back["node"]["vector"], state["node"]["vector"], rtol=0, atol=0)
    assert back["node"]["buffer/mean"].dtype == torch.int64
    assert back["node"]["position"] == 2**70
    assert isinstance(back["array"], np.ndarray)
    assert back["array"].tolist() == [0.0, 2.0]
    assert back["halves"].dtype == torch.bfloat16
    assert back["halves"].isnan().tolist() == [False, True]
    assert back["empty"].shape == (0, 3)
    assert torch.equal(back["transposed"], state["transposed"])
    assert back["numbers"]["float"] == 0.1
    assert math.isnan(back["numbers"]["nan"])
    assert back["numbers"]["inf"] == -math.inf
    assert back["numbers"]["flag"] is True
    assert back["text"] == state["text"]
    assert back["nothing"] == {}
    assert [each.name for each in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("value", [object(), None, [1, 2], {3: 1}, {"$tensor": 1}])
def test_what_cannot_be_saved_is_named(tmp_path, value):
    with pytest.raises(CheckpointError, match="here"):
        save(tmp_path / "state", {"here": value})
    assert not list(tmp_path.iterdir())


def test_a_mapping_in_itself_ends(tmp_path):
    state: dict = {}
    state["again"] = state
    with pytest.raises(CheckpointError, match="deep"):
        save(tmp_path / "state", state)


def test_every_torn_file_falls_back_to_the_one_before(tmp_path):
    file = tmp_path / "state"
    save(file, {"round": 1, "x": torch.zeros(8)})
    save(file, {"round": 2, "x": torch.ones(8)})
    whole = file.read_bytes()
    assert read(previous(file))["round"] == 1
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="state"):
            read(file)
        with pytest.warns(UserWarning, match="going on from the one before"):
            assert load(file)["round"] == 1
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):
            read(file)


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path):
    file = tmp_path / "state"
    save(file, {"round": 1})
    file.replace(previous(file))
    with pytest.warns(UserWarning, match="going on"):
        assert load(file) == {"round": 1}


def test_a_torn_file_never_takes_the_place_of_a_whole_one(tmp_path, monkeypatch):
    file = tmp_path / "state"
    save(file, {"round": 1})
    save(file, {"round": 2})
    file.write_bytes(b"torn")
    replace = type(file).replace

    def killed(self, target):
        if target.name.endswith(".previous"):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(type(file), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(file, {"round": 3})
    assert read(file) == {"round": 3}
    assert read(previous(file)) == {"round": 1}
    monkeypatch.undo()
    save(file, {"round": 4})
    assert read(previous(file)) == {"round": 3}
    assert {each.name for each in tmp_path.iterdir()} == {"state", "state.previous"}


def test_without_any_whole_file_both_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="nor is there one before"):
        load(tmp_path / "state")
    torch.save({"a": torch.zeros(1)}, tmp_path / "state")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(tmp_path / "state")


def test_a_full_disk_leaves_the_last_one(tmp_path, monkeypatch):
    import safetensors.torch

    file = tmp_path / "state"
    save(file, {"round": 1})

    def full(tensors, name, meta):
        name.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(file, {"round": 2})
    assert load(file) == {"round": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
