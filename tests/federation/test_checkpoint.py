"""Checkpoints: what was saved comes back to the bit, a torn file never does, and the one before it then counts."""

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from byzflow.errors import CheckpointError, FederationError
from byzflow.federation.checkpoint import load, previous, read, save
from byzflow.federation.datasets import load as load_data
from byzflow.federation.federation import Federation
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.models import make_model
from byzflow.federation.nodes import AttackNode, PoisonedNode
from byzflow.federation.resume import packed, unpacked
from byzflow.memory import ByNode
from tests.federation.mortal import Mortal


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


def learners() -> list:
    split = load_data("synthetic", train=120, test=40, features=6, classes=3)
    honest = [
        LearnerNode(
            make_model("mlp", split.shape, split.classes, seed=1),
            (split.train_x[k::6], split.train_y[k::6]),
            batch_size=7,
            lr=0.1,
            momentum=0.9,
            test=split,
            seed=k,
        )
        for k in range(6)
    ]
    return [*honest[:5], AttackNode("gaussian"), PoisonedNode(honest[5])]


@pytest.mark.parametrize("graph", ["star", "ring", "random_matchings"])
@pytest.mark.parametrize("defence", ["momentum | centered_clipping(tau=1)", "median"])
def test_three_rounds_and_three_after_a_break_are_six(tmp_path, graph, defence):
    def end(federation):
        return [node.state() for node in map(federation.__getitem__, range(5))]

    whole = Federation(learners(), graph, defence)
    history = whole.train(6)
    assert any(whole.lives.memory().values()) == ("momentum" in defence)
    Federation(learners(), graph, defence, checkpoint=tmp_path).train(3)
    later = Federation(learners(), graph, defence, checkpoint=tmp_path, checkpoint_every=2, resume=True)
    assert later.train(3).metric("loss") == history.metric("loss")
    assert [report.round for report in later.history] == list(range(6))
    for one, other in zip(end(whole), end(later), strict=True):
        assert one.keys() == other.keys()
        assert all(str(one[name]) == str(other[name]) for name in one)
        assert torch.equal(one["vector"], other["vector"])


def test_a_rules_memory_is_packed_whole():
    state = {"centre": torch.ones(2), "momentum": ByNode({1: torch.zeros(1), "1": torch.ones(1), 2: None}), "count": 3}
    back = unpacked(packed(state))
    assert torch.equal(back["centre"], torch.ones(2))
    assert back["count"] == 3
    assert isinstance(back["momentum"], ByNode)
    assert {id: float(each) for id, each in back["momentum"].items()} == {1: 0.0, "1": 1.0}


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    Federation([Mortal(0), Mortal(1), Mortal(2)], "ring", "median", checkpoint=tmp_path).train(1)
    for nodes, graph, defence, seed, why in [
        (3, "ring", "mean", 0, "rule 'median"),
        (3, "ring", "median", 1, "seed 0"),
        (4, "ring", "median", 0, "other nodes: 3"),
        (3, [(0, 1), (1, 2)], "median", 0, "another graph"),
    ]:
        federation = Federation(
            [Mortal(k) for k in range(nodes)], graph, defence, seed=seed, checkpoint=tmp_path, resume=True
        )
        with pytest.raises(FederationError, match=why):
            federation.train(1)
    for settings in ({"resume": True}, {"checkpoint": tmp_path, "checkpoint_every": 0}):
        with pytest.raises(FederationError, match="checkpoint"):
            Federation([Mortal(0)], **settings)


RUN = """
import asyncio, sys
from byzflow.federation.federation import Federation
from byzflow.federation.supervision import Supervision
from byzflow.federation.virtual_node import VirtualNode
from tests.federation.mortal import Mortal

folder, graph, deaths = sys.argv[1:]
nodes = [Mortal(0, folder, (deaths,) if deaths else ()), Mortal(1)]
nodes += [VirtualNode(Mortal, 2, "train-eval", backend="process:")]
federation = Federation(
    nodes, graph, "momentum | centered_clipping(tau=1)", checkpoint=folder, resume=True,
    supervision=Supervision(period=0), sinks=[lambda report: print(federation[2]._backend.pid, flush=True)],
)
async def main():
    async with federation:
        await federation.run(6 - len(federation.history))
        print([nodes[0].state(), nodes[1].state(), await federation[2].state()])
asyncio.run(main())
"""


@pytest.mark.parametrize("graph", ["star", "ring"])
def test_kill_9_of_the_whole_run_and_a_new_start_end_as_an_undisturbed_run(tmp_path, graph):
    def run(deaths):
        command = [sys.executable, "-c", RUN, str(tmp_path), graph, deaths]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    broken = run("honest_gradient:4")  # in the fourth round
    assert broken.returncode == -9
    pids = broken.stdout.split()
    assert len(pids) == 3
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    again = run("")
    assert (again.returncode, again.stderr) == (0, "")
    assert len(again.stdout.splitlines()) == 4  # three rounds, and the states
    quiet = [Mortal(k) for k in range(3)]
    Federation(quiet, graph, "momentum | centered_clipping(tau=1)").train(6)
    assert again.stdout.splitlines()[-1] == str([node.state() for node in quiet])
