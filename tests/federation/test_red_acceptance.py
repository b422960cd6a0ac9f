"""Red's acceptance list, a test an item. Items 7 and 8 are in test_resources, 9 in test_supervision."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

from byzflow.errors import ByzflowError, FederationError, MailboxFull, NotANeighbour, SpecError, Stopped
from byzflow.federation import datasets
from byzflow.federation.datasets import Split
from byzflow.federation.federated_base import FederatedBase
from byzflow.federation.federated_node import FederatedNode
from byzflow.federation.federation import Federation
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.learning_schemas import (
    ClusterFederatedLearningSchema,
    KRegularFederatedLearningSchema,
    MeshFederatedLearningSchema,
    RingFederatedLearningSchema,
    StarFederatedLearningSchema,
)
from byzflow.federation.message import Message
from byzflow.federation.models import make_model
from byzflow.federation.nodes import AttackNode
from byzflow.federation.partitions import partition
from byzflow.federation.virtual_node import VirtualNode
from byzflow.gossip.cluster import Clusters
from byzflow.gossip.mailbox import LOOSE
from tests.federation.small import Fixed, Valued

PATIENCE = 20.0
SIZES = (2, 3, 10, 100)


@pytest.fixture(scope="module")
def digits() -> Split:
    return datasets.load("digits")


def learners(split: Split, n: int, **settings: Any) -> list[LearnerNode]:
    parts = partition("iid", split.train_y, n)
    given: dict[str, Any] = {"lr": 1.0, "batch_size": 32, "test": split} | settings
    return [
        LearnerNode(
            make_model("softmax", split.shape, split.classes),
            (split.train_x[part], split.train_y[part]),
            seed=k,
            **given,
        )
        for k, part in enumerate(parts)
    ]


def circle(n: int) -> nx.Graph:
    return nx.cycle_graph(n) if n > 2 else nx.path_graph(n)


TOPOLOGIES: dict[str, Any] = {
    "star": lambda n: "star",
    "ring": lambda n: "ring",
    "mesh": lambda n: "mesh",
    "k_regular": lambda n: "k_regular",
    "cluster": lambda n: "cluster",
    "ndarray": lambda n: nx.to_numpy_array(circle(n)),
    "networkx": circle,
    "callable": lambda n: lambda t: "ring" if t % 2 else nx.star_graph(n - 1),
}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology_trains_at_every_size(name: str, n: int, digits: Split) -> None:
    """1. Federation(topology=...) trains to a stated accuracy, 0.8 in the median, at n in {2, 3, 10, 100}."""
    rounds, steps = (20, 1) if n < 100 else (5, 8) if name in ("star", "mesh") else (12, 4)
    nodes = learners(digits, n, local_steps=steps)
    federation = Federation(
        nodes, TOPOLOGIES[name](n), exchange="updates" if n == 100 and name == "star" else "gradients",
        evaluate_every=rounds,
    )  # fmt: skip
    history = federation.train(rounds)
    assert len(history) == rounds
    assert history[-1].connected == tuple(range(n))
    assert history[-1].metrics["accuracy"] >= 0.8


class Making(FederatedNode):
    made: list[Any]

    def build(self, **kwargs: Any) -> None:
        type(self).made.append(self.id)

    def train(self, **kwargs: Any) -> None:
        pass


def test_virtual_nodes_cost_little_until_they_are_used() -> None:
    """2. 10 000 VirtualNodes in < 1 s; built is False until first use; build is called exactly once."""
    Making.made = []
    began = time.perf_counter()
    nodes = [VirtualNode(Making, k, "train") for k in range(10_000)]
    assert time.perf_counter() - began < 1.0
    assert not any(node.built for node in nodes)
    assert not Making.made
    with FederatedBase(nodes[:3], "mesh") as federation:
        federation.train(blocking=True)
        federation.train(blocking=True)
        federation.test("eval")
    assert sorted(Making.made) == [0, 1, 2]
    assert not nodes[3].built


class Program(FederatedNode):
    """Runs a function of itself."""

    def train(self, program: Any, **kwargs: Any) -> Any:
        return program(self)


def threads(n: int, topology: Any = "ring", names: Sequence[str] = "abcdefghij") -> FederatedBase:
    return FederatedBase([VirtualNode(Program, name) for name in names[:n]], topology)


def test_edges_are_enforced_at_both_ends_and_a_supervisor_reaches_all() -> None:
    """3. send to a non-neighbour raises at the sender and is dropped and counted at the receiver; a supervisor's
    message reaches every node."""
    told = threading.Barrier(5)

    def program(node: FederatedNode) -> dict[str, Any]:
        if node.id == "a":
            with pytest.raises(NotANeighbour, match="a may not send to c; its neighbours are b, d"):
                node.send("x", 1, to="c")
            with pytest.raises(NotANeighbour):
                node.send("x", 1, to=["b", "c"])  # and nothing of it goes to b
        if node.id == "c":  # as if a had skipped its check
            assert not node.enqueue(Message("x", "a", 1))
            assert node.enqueue(Message("x", "b", 1))
        told.wait(PATIENCE)
        order = node.receive(block=True, timeout=PATIENCE, type="order")
        assert order is not None
        assert order.sender_id == "supervisor"
        assert order.timestamp.tzinfo is not None
        return {"order": order.body, "left": node.receive()}

    with threads(4) as federation:
        federation.train(program=program)
        told.wait(PATIENCE)
        federation.send("order", {"lr": 0.1})
        found = federation.wait(PATIENCE)
        manager = federation.tp_manager
        assert manager is not None
        assert manager.refused("c") == {"a": {"not a neighbour": 1}}
        assert [each["order"] for each in found] == [{"lr": 0.1}] * 4
        assert [each["left"] is not None for each in found] == [False, False, True, False]
        with pytest.raises(FederationError, match="no node 'z'"):
            federation.send("order", {}, to="z")


def test_a_send_to_many_is_made_ready_once() -> None:
    """4. send to k neighbours serialises once (counter = 1)."""

    def program(node: FederatedNode) -> dict[str, Any]:
        x = torch.zeros(3)
        if node.id == "a":
            node.send("x", {"x": x})
            x += 1  # what was sent stays as it was
            return {}
        told = node.receive(block=True, timeout=PATIENCE)
        assert told is not None
        return {"address": told.body["x"].data_ptr(), "sum": float(told.body["x"].sum())}

    with threads(6, "star") as federation:
        found = federation.train(program=program, blocking=True)[1:]
        assert len({each["address"] for each in found}) == 1
        assert {each["sum"] for each in found} == {0.0}
        stats = federation.collect_federation_metrics()["message_throughput"]
        assert (stats["serialised"], stats["delivered"]) == (1, 5)


def test_receive_takes_what_was_asked_for_and_nothing_else() -> None:
    """5. receive(type=, round=, timeout=) never consumes other types; STOP pre-empts; a bounded queue pushes back; no
    busy loop."""
    blocked, cpu = threading.Event(), []

    def program(node: FederatedNode) -> dict[str, Any] | None:
        if node.id == "a":
            for t in (0, 1):
                node.send("x", t, round=t)
                node.send("y", t, round=t)
            return None
        assert node.receive(type="z") is None
        assert node.receive(block=True, timeout=0.01, type="x", round=7) is None
        got = [node.receive(True, PATIENCE, type=type, round=t) for type, t in (("y", 1), ("x", 1), ("x", 0), ("y", 0))]
        node.log_metrics({"got": [(each.header, each.body) for each in got if each is not None]})
        blocked.set()
        began = time.thread_time()
        try:
            node.receive(block=True)
        finally:
            cpu.append(time.thread_time() - began)
        return {"never": True}

    with threads(2) as federation:
        federation.train(program=program)
        assert blocked.wait(PATIENCE)
        time.sleep(0.3)
        assert federation.running
        federation.send("STOP")
        found = federation.wait(PATIENCE)
    assert found[1] == {"got": [("y", 1), ("x", 1), ("x", 0), ("y", 0)]}
    assert cpu[0] < 0.1

    def flood(node: FederatedNode) -> dict[str, Any]:
        if node.id == "a":
            for k in range(LOOSE):
                node.send("x", k, to="b")
            with pytest.raises(MailboxFull, match=f"{LOOSE} messages of a wait"):
                node.send("x", LOOSE, to="b", timeout=0.02)
            node.send("go", to="c")
            node.send("x", LOOSE, to="b")  # waits until b takes one
            return {}
        if node.id == "c":
            node.receive(block=True, timeout=PATIENCE, type="go")
            node.send("go", to="b")
            return {}
        node.receive(block=True, timeout=PATIENCE, type="go")
        return {"all": [each.body for _ in range(LOOSE + 1) if (each := node.receive(True, PATIENCE, type="x"))]}

    with threads(3) as federation:
        assert federation.train(program=flood, blocking=True)[1]["all"] == list(range(LOOSE + 1))
        assert federation.tp_manager is not None
        assert federation.tp_manager.refused("b") == {}


def test_versions_are_read_as_often_as_one_likes() -> None:
    """6. pull_version(ids, timeout) returns values, non-consuming, in order, bounded memory."""
    go = threading.Event()

    def program(node: FederatedNode) -> None:
        weights = {"w": torch.zeros(2)}
        for _ in range(10):
            weights["w"] += 1
            node.update_version(weights=weights)
        if node.id == "b":
            go.wait(PATIENCE)

    with threads(3) as federation:
        assert federation.pull_version("a") is None
        federation.train(program=program)
        found = federation.pull_version(["c", "a"], timeout=PATIENCE)
        assert [each["id"] for each in found] == ["c", "a"]
        go.set()
        federation.wait(PATIENCE)
        for _ in range(2):
            found = federation.pull_version(["c", "a"])
            assert [(each["n_version"], each["model"]["weights"]["w"].tolist()) for each in found] == [
                (10, [10.0, 10.0])
            ] * 2
        kept = federation["a"].handle.versions
        assert [kept.pull(number)["model"]["weights"]["w"][0] for number in range(7, 11)] == [7, 8, 9, 10]
        with pytest.raises(FederationError, match="is gone"):
            kept.pull(6)
        assert federation["a"].handle.version == 10


def test_roles_are_honoured(digits: Split) -> None:
    """10. Role combinations are honoured, incl. eval-only nodes that receive and never contribute."""
    for topology in ("star", "mesh", "cluster:2"):
        nodes = {name: Fixed([1.0, 0.0]) if topology == "star" else Valued(k) for k, name in enumerate("abcdef")}
        roles = {"a": "train", "b": "train-eval", "c": "eval", "d": "train-test", "e": "train-eval-test", "f": "train"}
        history = Federation(nodes, topology, roles=roles).train(2)
        assert "c" not in history[-1].weights
        assert set("abdef") <= set(history[-1].weights)
        assert nodes["c"].asked == 0
        assert not history[-1].missing
        assert not torch.equal(nodes["c"].x, torch.tensor([2.0, 2.0])), "it receives"
    told = FederatedBase([VirtualNode(Program, role, role) for role in ("train", "eval-test", "aggregate")], "mesh")
    ran: list[Any] = []
    told.train(program=lambda node: ran.append(node.id), blocking=True)
    assert sorted(ran) == ["aggregate", "train"]
    node = told["eval-test"].handle
    assert (node.is_train_node, node.is_eval_node, node.is_test_node) == (False, True, True)
    told.stop()


def test_the_state_is_right_at_any_time() -> None:
    """11. running, num_nodes, node_ids, resources, federation[id], idempotent stop(): right in every state, also
    before train()."""
    federation = threads(3)

    def always() -> None:
        assert (federation.num_nodes, federation.node_ids) == (3, ["a", "b", "c"])
        assert set(federation.resources) == {"a", "b", "c"}
        assert all(each["CPU"] > 0 for each in federation.resources.values())
        assert federation["b"].id == "b"
        with pytest.raises(FederationError, match="no node 'z'; there are a, b, c"):
            federation["z"]

    always()
    assert (federation.running, federation.state) == (False, "IDLE")
    federation.stop()
    federation.stop()
    assert federation.state == "STOPPED"
    always()
    for _ in range(2):
        federation.train(program=lambda node: node.receive(block=True))
        assert (federation.running, federation.state) == (True, "RUNNING")
        always()
        with pytest.raises(FederationError, match="are training"):
            federation.train(program=None)
        with pytest.raises(TimeoutError):
            federation.wait(0.01)
        federation.stop()
        federation.wait(PATIENCE)
        assert (federation.running, federation.state) == (False, "STOPPED")
        federation.stop()
        always()


def test_an_error_of_one_node_ends_the_run_and_is_raised() -> None:
    def program(node: FederatedNode) -> None:
        if node.id == "b":
            raise KeyError("mine")
        node.receive(block=True)

    with threads(3) as federation, pytest.raises(KeyError, match="mine"):
        federation.train(program=program, blocking=True)


def test_schemas_of_user_code_are_registered() -> None:
    """12. schema.register(...) from user code; the overview's MyCustomNode and MyCustomFederation run (see
    test_red_samples); entry points are in test_schemas."""
    from byzflow.federation.schemas import schema, schema_factory

    schema_factory.register("RedAcceptanceSchema", lambda config, log: "trained")
    assert schema.find("RedAcceptanceSchema") is not None
    with pytest.raises(ByzflowError, match="did you mean"):
        schema.find("StarFederatedLearnin")


def test_the_topology_changes_in_the_middle_of_a_run() -> None:
    """13. Topology changed mid-run: neighbour caches invalidated, no message lost or misrouted."""
    changed, waiting = threading.Event(), threading.Barrier(5)

    def program(node: FederatedNode) -> dict[str, Any]:
        before = node.neighbors
        node.send("x", (node.id, "ring"))
        waiting.wait(PATIENCE)
        assert changed.wait(PATIENCE)
        after = node.neighbors
        node.send("x", (node.id, "star"))
        expected = len(before) + len(after)
        got = [node.receive(block=True, timeout=PATIENCE) for _ in range(expected)]
        return {
            "before": before,
            "after": after,
            "got": sorted(each.body for each in got if each),
            "more": node.receive(),
        }

    with threads(4) as federation:
        federation.train(program=program)
        waiting.wait(PATIENCE)
        manager = federation.tp_manager
        assert manager is not None
        manager.update_topology("star")
        changed.set()
        found = federation.wait(PATIENCE)
        assert manager.get_stats()["topology_version"] == 1
    assert [each["before"] for each in found] == [["b", "d"], ["a", "c"], ["b", "d"], ["a", "c"]]
    assert [each["after"] for each in found] == [["b", "c", "d"], ["a"], ["a"], ["a"]]
    for each in found:
        assert each["got"] == sorted([(n, "ring") for n in each["before"]] + [(n, "star") for n in each["after"]])
        assert each["more"] is None

    async def rounds() -> None:
        nodes = [Valued(k) for k in range(6)]
        async with Federation(nodes, "ring") as federation:
            for shape in ("full", "star", "ring", "full"):
                await federation.round()
                graph = (
                    nx.complete_graph(6)
                    if shape == "full"
                    else nx.cycle_graph(6)
                    if shape == "ring"
                    else nx.star_graph(5)
                )
                federation.topology = federation.topology.with_edges(graph.edges)  # type: ignore[union-attr]
            history = await federation.run(1)
        assert not any(report.missing or report.rejected for report in history)
        assert sum(sum(box.refused.values(), start=0) for m in range(6)
                   for box in [federation.network.mailbox(m)] if box.refused) == 0  # fmt: skip

    asyncio.run(rounds())


def test_one_wrong_key_is_named(tmp_path: Path) -> None:
    """14. Config: one wrong key gives an error with path and suggestion; a sweep over 20 configs is in
    test_run_command."""
    from byzflow.federation.config import load

    file = tmp_path / "wrong.toml"
    file.write_text('[federation]\ntopolgy = "ring"\n')
    with pytest.raises(ByzflowError, match=r"wrong.toml.*federation\.topolgy.*did you mean.*topology"):
        load(file)


class Normed(nn.Sequential):
    """A model with floating and integer buffers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize("buffers", ["local", "mix"])
def test_averaging_of_models_with_batch_norm(buffers: Any, digits: Split) -> None:
    """15. FedAvg over BatchNorm models; sample-weighted (capped); FedProx mu."""
    parts = partition("iid", digits.train_y, 4)
    data = [(digits.train_x[part], digits.train_y[part]) for part in parts]
    schema = StarFederatedLearningSchema(roles=["train"] * 4)
    history = schema.train(
        {"rounds": 8, "exchange": "updates", "defence": "mean", "evaluate_every": 8},
        {
            "model": Normed,
            "data": data,
            "lr": 0.2,
            "local_steps": 8,
            "prox_mu": 0.01,
            "buffers": buffers,
            "test": digits,
        },
        blocking=True,
    )
    assert history[-1].metrics["accuracy"] >= 0.8
    pulled = schema.pull_version(["client_0", "client_3"])
    assert [each["n_version"] for each in pulled] == [8, 8]
    assert schema.test("eval")[0]["accuracy"] >= 0.8
    schema.stop()


class Claiming(Fixed):
    def __init__(self, gradient: Sequence[float], claim: Any) -> None:
        super().__init__(gradient)
        self.claim = claim

    def samples(self) -> Any:
        return self.claim


def test_claimed_samples_count_up_to_a_cap() -> None:
    """15, sample-weighted (capped)."""
    claims = [10, 30, 1e12, float("inf"), -5, "many", float("nan")]
    nodes = [Claiming([float(k)], claim) for k, claim in enumerate(claims)]
    history = Federation(nodes, "star", "mean", sample_cap=60.0, seed=1).train(1)
    expected = np.array([10, 30, 60, 60, 1, 1, 1]) / 163
    assert [history[0].weights[k] for k in range(7)] == pytest.approx(expected.tolist())
    attacked = Federation([Fixed([1.0]), Fixed([1.0]), AttackNode("sign_flip")], "star", "mean", sample_cap=1.0).train(
        1
    )
    assert attacked[0].weights[2] == pytest.approx(1 / 3)
    with pytest.raises(FederationError, match="sample_cap"):
        Federation(nodes, "star", sample_cap=0.0)


def test_the_proximal_term_holds_local_steps_back(digits: Split) -> None:
    """15, FedProx mu."""
    far, near = (learners(digits, 2, local_steps=10, prox_mu=mu)[0].local_update().norm() for mu in (0.0, 0.5))
    assert 0 < near < far


@pytest.mark.parametrize(
    "kind", [RingFederatedLearningSchema, MeshFederatedLearningSchema, KRegularFederatedLearningSchema,
             ClusterFederatedLearningSchema],
)  # fmt: skip
@pytest.mark.parametrize("n", [2, 3, 10])
def test_peers_of_a_shape_learn_without_a_template(kind: Any, n: int, digits: Split) -> None:
    parts = partition("iid", digits.train_y, n)
    data = [(digits.train_x[part], digits.train_y[part]) for part in parts]
    schema = kind(roles=["train"] * n)
    history = schema.train(
        {"model": lambda: make_model("softmax", digits.shape, 10), "data": data, "lr": 1.0, "test": digits},
        blocking=True,
        rules={"rounds": 15, "evaluate_every": 15},
    )
    assert history[-1].metrics["accuracy"] >= 0.8
    assert not schema.running
    assert schema.state == "IDLE"
    schema.stop()


def test_models_circulate_in_a_ring_of_threads() -> None:
    for n in (2, 3, 10, 100):

        def program(node: FederatedNode, n: int = n) -> dict[str, Any]:
            position = int(str(node.id).removeprefix("client_"))
            after = f"client_{(position + 1) % n}"
            seen = [position]
            for t in range(n - 1):
                node.send("model", {"seen": seen}, to=after, round=t)
                told = node.receive(block=True, timeout=PATIENCE, type="model", round=t)
                assert told is not None
                assert n == 2 or told.sender_id == f"client_{(position - 1) % n}"
                seen = [*told.body["seen"], position]
            return {"seen": seen}

        schema = RingFederatedLearningSchema(Program, ["train"] * n)
        found = schema.train({"program": program}, blocking=True)
        assert [each["seen"] for each in found] == [[(k + 1 + j) % n for j in range(n)] for k in range(n)]
        schema.stop()


def test_a_learning_schema_stops_in_the_middle(digits: Split) -> None:
    schema = MeshFederatedLearningSchema(roles=["train"] * 3)
    parts = partition("iid", digits.train_y, 3)
    data = [(digits.train_x[part], digits.train_y[part]) for part in parts]
    with pytest.raises(FederationError, match="client_args needs data and model"):
        schema.train({})
    schema.train({"model": lambda: make_model("softmax", digits.shape, 10), "data": data}, rules={"rounds": 100_000})
    assert schema.running
    assert schema.pull_version("client_0", timeout=PATIENCE)["n_version"] >= 1
    schema.stop()
    assert not schema.running
    assert schema.state == "STOPPED"
    schema.stop()


def test_clusters_bear_attackers_and_give_them_no_voice(digits: Split) -> None:
    honest = learners(digits, 14)
    nodes = [AttackNode("sign_flip(scale=5)") if k in (0, 7) else each for k, each in enumerate(honest)]
    federation = Federation(nodes, "cluster:2", "trimmed_mean", f=1, evaluate_every=15)
    history = federation.train(15)
    assert history[-1].metrics["accuracy"] >= 0.85
    groups = federation.shared.settings["clusters"]
    assert not {0, 7} & set(groups.heads)


def test_clusters_form_by_what_their_nodes_send() -> None:
    """Two kinds of data, dealt out in turns: they end up apart, attackers or not."""
    target = {0: torch.tensor([4.0, 0.0, 0.0]), 1: torch.tensor([0.0, 4.0, 0.0])}

    class Pulled(Valued):
        def __init__(self, kind: int, k: int) -> None:
            super().__init__(0.0, d=3)
            self.target = target[kind] + 0.1 * torch.randn(3, generator=torch.Generator().manual_seed(k))

        def half_step(self) -> torch.Tensor:
            return self.x + 0.5 * (self.target - self.x)

    nodes: list[Any] = [Pulled(k % 2, k) for k in range(14)]
    nodes[4], nodes[5] = AttackNode("sign_flip(scale=3)"), AttackNode("sign_flip(scale=3)")
    federation = Federation(nodes, Clusters(count=2, period=50, every=3), "trimmed_mean", f=2, evaluate_every=0)
    federation.train(8)
    groups = federation.shared.settings["clusters"].members
    kinds = [{k % 2 for k in group if k not in (4, 5)} for group in groups]
    assert len(groups) == 2
    assert kinds in ([{0}, {1}], [{1}, {0}])
    for k, node in enumerate(nodes):
        if k not in (4, 5):
            assert torch.dist(node.x, target[k % 2]) < 1.0


def test_clusters_are_checked_before_anything_runs() -> None:
    nodes = [Valued(k) for k in range(4)]
    for wrong in (Clusters([[0, 1], [2]]), Clusters([[0, 1], [2, 3], []]), Clusters(count=9)):
        with pytest.raises(SpecError):
            Federation(nodes, wrong)
    for settings in ({"period": 0}, {"every": -1}, {"count": 0}):
        with pytest.raises(SpecError, match="clusters need"):
            Clusters(**settings)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="cluster:3"):
        Federation(nodes, "cluster:two")
    assert issubclass(Stopped, FederationError)
