"""One file: keys and ranges, errors that name file, key, bound and the next step; overrides, sweeps, Red's keys."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from byzflow.errors import SpecError
from byzflow.federation import config, schemas
from byzflow.federation.typed_file import read
from tests.federation.test_datasets import mnist_files

RED = """
device: 'cpu'
federation_id: 'quickstart-federation'
federated_learning_schema: 'StarFederatedLearning'
federated_learning_topology: 'star'
client_role: 'train'
number_of_clients: 4
model_type: "cnn"
dataset_type: "fmnist"
learning_rate: 0.001
number_of_epochs: 1
train_batch_size: 32
test_batch_size: 32
federated_learning_rounds: 5
"""


def written(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_is_a_star_of_ten(tmp_path: Path) -> None:
    found = config.load(written(tmp_path, ""))
    assert (found.nodes.count, found.federation.rounds, found.defence.rule) == (10, 50, "nnm | trimmed_mean")
    assert schemas.of(found).name == "star"


def test_toml_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    toml = written(tmp_path, "[nodes]\ncount = 4\nroles = {0 = 'eval'}\nbyzantine = [3]\n")
    yaml = written(tmp_path, "nodes:\n  count: 4\n  roles: {0: eval}\n  byzantine: [3]\n", "run.yaml")
    plain = {"nodes": {"count": 4, "roles": {"0": "eval"}, "byzantine": [3]}}
    as_json = written(tmp_path, json.dumps(plain), "run.json")
    assert config.load(toml) == config.load(yaml) == config.load(as_json)
    assert config.load(toml).nodes.roles == {0: "eval"}


def test_folders_are_relative_to_the_file_and_of_overrides_to_here(tmp_path: Path) -> None:
    text = "[federation]\ncheckpoint = 'a/kept'\nledger = '/abs'\n[sweep]\n'federation.checkpoint' = ['b', '/c']\n"
    path = written(tmp_path, text)
    found = config.load(path).federation
    assert (found.checkpoint, found.ledger) == (str(tmp_path / "a" / "kept"), "/abs")
    assert config.load(path, ["federation.checkpoint=here"]).federation.checkpoint == "here"
    assert [each.federation.checkpoint for _, each in config.sweep(path)] == [str(tmp_path / "b"), "/c"]
    with pytest.raises(SpecError, match=r"federation.checkpoint: must be str, got 3"):
        config.load(written(tmp_path, "[federation]\ncheckpoint = 3"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[nodes]\ncuont = 3", "nodes.cuont: unknown key; did you mean count?"),
        ("[node]\ncount = 3", "node: unknown key; did you mean nodes"),
        ("[nodes]\ncount = 1", "nodes.count: must be int >= 2, got 1"),
        ("[nodes]\ncount = '4'", "nodes.count: must be int, got '4'"),
        ("[training]\nmomentum = 1.0", "training.momentum: must be float < 1.0, got 1.0"),
        ("[training]\nlr = nan", "training.lr: must be float > 0.0, got nan"),
        ("[federation]\ndeadline = 0", "federation.deadline: must be float > 0.0, got 0"),
        ("[federation]\nexchange = 'update'", "federation.exchange: no such choice 'update'; did you mean updates?"),
        ("nodes = 3", "nodes: must be object, got 3"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_with_its_path(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}: {told}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["defence.f=5"], r"defence: nnm\(f=5\) \| trimmed_mean\(f=5\) needs at least 11 senders, got 10"),
        (["federation.topology=ring", "defence.f=2"], "needs at least 5 senders, got 3"),
        (["federation.fraction=0.3", "defence.f=2"], "needs at least 5 senders, got 3"),
        (
            ["nodes.roles=train", "defence.rule=krum", "nodes.count=4", "defence.f=1"],
            r"needs at least 5 senders, got 4",
        ),
        (["defence.rule=alie"], "defence.rule: .* is no aggregation"),
        (["defence.rule=trimed_mean"], "defence.rule: .*did you mean trimmed_mean"),
        (["attack.name=sign_flp"], "attack.name: .*did you mean sign_flip"),
        (["attack.name=krum(f=1)"], "attack.name: .*is no attack"),
        (["federation.topology=k_regular:3", "nodes.count=5", "defence.f=0"], "federation.topology: .*n [*] K even"),
        (["federation.schema=ring", "federation.topology=mesh"], "federation.topology: the schema 'ring' has"),
        (["federation.schema=rign"], "federation.schema: .*did you mean ring"),
        (["federation.schema=custom", "federation.topology=star"], "federation.topology: a star has a centre"),
        (["clusters.count=2"], "clusters: mean nothing over star"),
        (["federation.topology=cluster", "clusters.count=4", "defence.f=1"], "needs at least 3 senders, got 2"),
        (["federation.topology=cluster", "clusters.between=medan"], "clusters.between: .*did you mean"),
        (["federation.resume=true"], "federation.resume: means nothing without a folder: set federation.checkpoint"),
        (["federation.checkpoint_every=2"], "federation.checkpoint_every: means nothing without a folder"),
        (
            ["federation.ledger=kept", "defence.rule=momentum | median"],
            "federation.ledger: .*remembers momentum from round to round",
        ),
        (["federation.quorum=11"], "federation.quorum: must be at most 10"),
        (["federation.min_nodes=11"], "federation.min_nodes: must be at most 10"),
        (["nodes.byzantine=10"], "nodes.byzantine: must be fewer than the 10 nodes"),
        (["nodes.byzantine=[12]"], "nodes.byzantine: .*ids 0 to 9"),
        (["nodes.roles=trian"], "nodes.roles: no role 'trian' .*did you mean train"),
        (["nodes.roles=eval"], "nodes.roles: no honest node trains"),
        (["data.name=digit"], "data.name: .*did you mean digits"),
        (["data.name=mnist", "data.root=/nowhere"], "data.name: mnist: no train-images"),
        (["data.alpha=2.0"], "data.partition: partition iid: unknown option 'alpha'"),
        (["data.features=3"], "data.name: dataset digits: unknown option 'features'"),
        (["model.name=resnet"], "model.name: unknown model 'resnet'"),
        (["model.name=nowhere:net"], "model.name: nowhere:net gives no model"),
        (["federation.exchange=gradients", "training.local_steps=3"], "training.local_steps: means nothing"),
        (["training.local_epochs=1", "training.local_steps=3"], "training.local_steps: local_epochs says it too"),
        (
            ["federation.topology=ring", "defence.f=0", "training.server_lr=0.5"],
            "training.server_lr: there is no server",
        ),
        (
            ["federation.topology=ring", "defence.f=0", "federation.exchange=updates"],
            "federation.exchange: nodes without",
        ),
        (["defence.sample_weights=true", "defence.rule=krum"], "defence.sample_weights: .*gives no node a weight"),
    ],
)
def test_what_cannot_work_together_is_told_before_anything_runs(tmp_path: Path, changes: list[str], told: str) -> None:
    found = config.load(written(tmp_path, ""), changes)
    with pytest.raises(SpecError, match=told):
        schemas.of(found)(found)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", "[nodes\n", "line 1"),
        ("a.json", '{"a": \n}', "line 2"),
        ("a.yaml", "a: [1\nb: 2", "line 2"),
        ("a.txt", "", "ends in .toml"),
        ("a.json", "[1]", "keys and values at its top"),
        ("a.json", "[" * 100_000, "nested too deep"),
    ],
)
def test_a_file_that_does_not_read_is_told_with_its_line(tmp_path: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        read(written(tmp_path, text, name))


def test_a_missing_file_and_a_missing_yaml_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        config.load(tmp_path / "none.toml")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(SpecError, match="pip install pyyaml"):
        config.load(written(tmp_path, "", "run.yaml"))


def test_overrides_are_typed_and_their_keys_known(tmp_path: Path) -> None:
    path = written(tmp_path, "[nodes]\ncount = 4\n")
    found = config.load(path, ["nodes.count=6", "attack.name=nan", "nodes.roles.2=eval", "defence.rule=nnm | median"])
    assert (found.nodes.count, found.attack.name, found.nodes.roles) == (6, "nan", {2: "eval"})
    assert found.defence.rule == "nnm | median"
    for wrong, told in (("nodes.cuont=3", "did you mean nodes.count"), ("nodes.count", "write key=value")):
        with pytest.raises(SpecError, match=told):
            config.load(path, [wrong])


def test_a_sweep_is_every_combination_and_commas_in_a_rule_are_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, "[sweep]\n'training.lr' = [0.1, 0.2]\n[sweep.nodes]\nbyzantine = [0, 1]\n")
    runs = config.sweep(path, (), ["defence.rule=mean,centered_clipping(tau=1.0, iterations=2),median"])
    assert len(runs) == 12
    assert runs[0][0] == {"training.lr": 0.1, "nodes.byzantine": 0, "defence.rule": "mean"}
    assert runs[1][1].defence.rule == "centered_clipping(tau=1.0, iterations=2)"
    assert (runs[-1][1].training.lr, runs[-1][1].nodes.byzantine) == (0.2, 1)
    assert len(config.sweep(path)) == 4
    with pytest.raises(SpecError, match=r"with training.lr=-1, nodes.byzantine=0: training.lr: must be float > 0\.0"):
        config.sweep(path, (), ["training.lr=0.1,-1", "nodes.byzantine=0"])
    with pytest.raises(SpecError, match="at most 1000"):
        config.sweep(path, (), ["federation.seed=" + ",".join(map(str, range(500)))])
    with pytest.raises(SpecError, match=r"sweep\.training\.lr: must be a list"):
        config.sweep(written(tmp_path, "[sweep.training]\nlr = 0.1"))


def test_red_s_getting_started_file_runs(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    path, notes = written(tmp_path, RED, "config.yaml"), list[str]()
    found = config.load(path, ["data.root=" + str(tmp_path), "federation.rounds=1"], note=notes.append)
    assert (found.federation.schema, found.nodes.count, found.training.lr) == ("StarFederatedLearning", 4, 0.001)
    assert (found.data.name, found.model.name, found.training.local_epochs) == ("fashion_mnist", "cnn", 1)
    assert (found.defence.rule, found.training.momentum, found.federation.exchange) == ("mean", 0.0, "updates")
    assert {"device", "federation_id", "test_batch_size", "client_role"} == {
        note.removeprefix(f"{path}: ").split()[0] for note in notes
    }
    mnist_files(tmp_path / "FashionMNIST" / "raw")
    made = schemas.of(found)(found)
    history = made.train(1)
    assert list(history[0].weights.values()) == [0.25] * 4
    assert len(history[0].digests) == 1


@pytest.mark.parametrize("knowledge", ["omniscient", "own"])
def test_attackers_know_what_the_file_says(tmp_path: Path, knowledge: str) -> None:
    """How many honest vectors the one liar of four nodes is shown: all three, or none."""
    file = f"attack.knowledge = '{knowledge}'\nnodes.count = 4\nnodes.byzantine = 1\ndefence.rule = 'mean'\n"
    found = config.load(written(tmp_path, file + "model.name = 'softmax'"))
    made = schemas.of(found)(found)
    liar, shown = made[3], list[int]()
    tell = liar.lie

    def lie(rows: list[Any], place: int, f: int) -> Any:
        shown.append(len(rows))
        return tell(rows, place, f)

    liar.lie = lie
    made.train(2)
    assert shown == ([3, 3] if knowledge == "omniscient" else [0, 0])


@pytest.mark.parametrize(
    ("lines", "keys"),
    [
        ({"data_distribution_kind": "30"}, {"data.partition": "label_skew", "data.per_node": 3}),
        ({"data_distribution_kind": "dir", "dirichlet_beta": 0.5}, {"data.partition": "dirichlet", "data.alpha": 0.5}),
        ({"aggregation_strategy": "FedProx"}, {"training.prox_mu": 0.01}),
        ({"aggregation_sample_scaling": True}, {"defence.sample_weights": True}),
        (
            {"federated_learning_schema": "DecentralizedFederatedLearning", "federated_learning_topology": "ring"},
            {"federation.topology": "ring", "federation.exchange": ""},
        ),
        (
            {"federated_learning_schema": "ClusterFederatedLearning", "clustering_period": 6},
            {"federation.schema": "ClusterFederatedLearning", "clusters.every": 6},
        ),
        ({"federated_learning_topology": "k_connect", "client_k_neighbors": 4}, {"federation.topology": "k_regular:4"}),
    ],
)
def test_red_s_keys_have_their_meaning(tmp_path: Path, lines: dict[str, Any], keys: dict[str, Any]) -> None:
    path = written(tmp_path, json.dumps({"number_of_clients": 6, **lines}), "red.json")
    found = config.load(path, ["data.name=digits"])
    for key, value in keys.items():
        section, name = key.split(".")
        assert getattr(getattr(found, section), name) == value
    schemas.of(found)(found)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"encryption_method": "xmkckks"}, "encryption_method: no such key of Red's"),
        ({"lerning_rate": 1}, "did you mean learning_rate"),
        ({"aggregation_strategy": "FedAvgg"}, "aggregation_strategy: got 'FedAvgg'; did you mean FedAvg"),
        ({"data_distribution_kind": "fix"}, "data_distribution_kind: got 'fix'"),
        ({"optimizer": "adam"}, "optimizer: .*got 'adam'"),
    ],
)
def test_a_key_of_red_s_without_meaning_here_is_an_error(tmp_path: Path, line: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        config.load(written(tmp_path, json.dumps({"number_of_clients": 6, **line}), "red.json"))


def test_every_key_is_described() -> None:
    rows = config.table()
    assert len(rows) > 40
    assert all(kind and meaning for _, kind, _, meaning in rows)
