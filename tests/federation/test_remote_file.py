"""The file that all nodes of a federation over TCP read: what it says, and mistakes in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from byzflow.errors import ByzflowError, SpecError
from byzflow.federation import nodes_file, remote
from tests.federation.remote_runs import (
    ENVIRONMENT,
    NODE,
    ROOT,
    nodes,
    write,
)

EXAMPLE = ROOT / "examples" / "remote_tcp" / "nodes_example.yaml"

ORIGINAL = """
training:
  rounds: 50
  batch_size: 64
  learning_rate: 0.05
  momentum: 0.9
aggregation:
  method: "multi_krum"
  krum_f: 1
  krum_q: 3
server:
  host: localhost
  port: 9000
  bind_host: "0.0.0.0"
workers:
  - {id: 0, host: localhost, port: 9001, type: honest, bind_host: "0.0.0.0", data_shard: 0}
  - {id: 1, host: localhost, type: honest, data_shard: 1}
  - {id: 2, host: localhost, type: honest, data_shard: 2}
  - {id: 3, host: localhost, type: byzantine, attack_scale: -1.0}
"""


def test_a_file_of_byzpy_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(ORIGINAL)
    file = nodes_file.read(path)
    said: list[str] = []
    made = remote.setup(file, "workers", tmp_path, say=said.append)
    assert str(made.rule) == "multi_krum(f=1, neighbors=n-f-1, strict=false)"
    assert made.contract.terms["training.learning_rate"] == 0.05
    assert any("no MNIST below" in line for line in said)
    assert any("fewer than 2f + 3 = 5" in line for line in said)
    assert nodes_file.notes(file) == [
        "workers[].host is for your information: workers only dial the server",
        "workers[].port is for your information: workers only dial the server",
    ]
    remote.setup(nodes_file.read(EXAMPLE), "workers", tmp_path)
    path.write_text(ORIGINAL.replace("multi_krum", "coordinate_wise_median"))
    remote.setup(nodes_file.read(path), "workers", tmp_path, say=said.append)
    assert any("krum_f and krum_q are for krum" in line for line in said)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("momentum", "momentun"), "line 6: training.momentun: unknown key; did you mean momentum"),
        (("rounds: 50", "rounds: many"), "line 3: training.rounds: must be int, got 'many'"),
        (("rounds: 50", "rounds: -1"), "line 3: training.rounds: must be int >= 0, got -1"),
        (("learning_rate: 0.05", "learning_rate: 0"), "line 5: training.learning_rate: must be float > 0"),
        (("type: byzantine", "type: byzantin"), "line 19: workers[3].type: no such choice 'byzantin'; did you mean"),
        (("id: 3", "id: 2"), "line 19: workers[3].id: 2 is there twice"),
        (("attack_scale", "atack_scale"), "line 19: workers[3].atack_scale: unknown key; did you mean attack_scale"),
        (("  host: localhost\n", ""), "line 11: server: object missing required field `host`"),
        (("port: 9000", "port: 90000"), "line 13: server.port: must be int <= 65535, got 90000"),
        (("workers:", "workers: ["), "not YAML"),
        (("workers:", "nodes:"), "the file needs server: and workers:"),
        (("multi_krum", "multy_krum"), "did you mean multi_krum"),
        (("multi_krum", "sign_flip"), "is no aggregation"),
        (("krum_q: 3", "krum_q: 4"), "more than n - f = 3"),
        (("krum_f: 1", "krum_f: 2"), "m=3) needs at least 5 senders, got 4"),
        (("attack_scale: -1.0", "attack: krum"), "workers[].attack of id 3: krum is no attack"),
        (("rounds: 50", "dataset: mnits"), "training.dataset: unknown dataset 'mnits'; did you mean mnist"),
        (("rounds: 50", "dataset: mnist"), "mnist"),
        (("rounds: 50", "model: mpl"), "unknown model 'mpl'; did you mean mlp"),
        (("rounds: 50", "partition: idd"), "unknown partition 'idd'; did you mean iid"),
    ],
)
def test_mistakes_in_the_file_are_one_line_that_says_where(
    tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(ORIGINAL.replace(*change, 1))

    def made() -> None:
        setup = remote.setup(nodes_file.read(path), "workers", tmp_path)
        setup.node(setup.members[0], "honest")

    with pytest.raises(ByzflowError) as caught:
        made()
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_needs_no_yaml_and_yaml_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert nodes_file.read(write(nodes(9000), tmp_path / "nodes.json")).server is not None
    with pytest.raises(SpecError, match="needs PyYAML: pip install pyyaml; JSON works without it"):
        nodes_file.read(EXAMPLE)
    (tmp_path / "torn.json").write_text('{"run": ')
    with pytest.raises(SpecError, match="line 1, column 9: not JSON"):
        nodes_file.read(tmp_path / "torn.json")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--role", "worker"], "--role worker needs --worker-id"),
        (["--role", "worker", "--worker-id", "7"], "no id 7 among the workers of the file: it has 0, 1, 2, 3"),
        (["--role", "server", "--worker-id", "1"], "a server has no id"),
        (["--role", "peer", "--node-id", "0"], "no id 0 among the nodes of the file: it has none: write them below"),
        (["--role", "server", "--keys", "nowhere"], "nowhere holds no own.key"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(arguments: list[str], reason: str) -> None:
    done = subprocess.run(
        [*NODE, "--config", str(EXAMPLE), *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
