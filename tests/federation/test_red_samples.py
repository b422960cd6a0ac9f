"""What Red's documents show: the same code with other import lines."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from byzflow.errors import FederationError
from byzflow_compat.red import (
    EndProcessException,
    FederatedBase,
    FederatedNode,
    Message,
    Queue,
    StarFederatedLearningSchema,
    VirtualNode,
    ray,
    remote,
)


class Config:
    FEDERATION_ID = "samples"


class MyCustomClient(FederatedNode):
    """The getting-started client, its model and data smaller."""

    def build(self, **kwargs: Any) -> None:
        self.model = self.create_model()
        self.train_loader = self.get_data_loader()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)

    def create_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))

    def get_data_loader(self) -> Any:
        data = torch.utils.data.TensorDataset(torch.randn(16, 1, 8, 8), torch.arange(16) % 10)
        return torch.utils.data.DataLoader(data, batch_size=8)

    def train(self, optimizer_fn: Any, loss_fn: Any, **kwargs: Any) -> dict[str, Any]:
        self.model.train()
        optimizer = optimizer_fn(self.model.parameters(), lr=0.01)
        criterion = loss_fn()
        total_loss = 0.0
        for data, target in self.train_loader:
            data, target = data.to(self.device), target.to(self.device)
            optimizer.zero_grad()
            loss = criterion(self.model(data), target)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
        self.update_version(weights=self.model.state_dict())
        return {"loss": total_loss / len(self.train_loader), "samples": len(self.train_loader.dataset)}


class MyCustomFederation(FederatedBase):
    """The getting-started federation: it builds, links and starts its nodes itself, through their handles."""

    def __init__(self, client_template: Any, num_clients: int, config: Any, log: Any, **kwargs: Any) -> None:
        nodes = [VirtualNode(client_template, f"client_{i}", "train", config, log) for i in range(num_clients)]
        super().__init__(nodes=nodes, topology="star", config=config, **kwargs)

    def train(self, client_args: Any, blocking: bool = False) -> Any:  # type: ignore[override]
        for i, node in enumerate(self._nodes):
            if not node.built:
                node.build(i + 1, self._pg)
        if self._tp_manager is None:
            self._tp_manager = self.create_topology_manager()
        ray.get([node.handle._setup_train.remote() for node in self._nodes])
        self._runtime_remotes = [node.handle._train.remote(**client_args) for node in self._nodes]
        if blocking:
            return ray.get(self._runtime_remotes)
        return None


def test_the_getting_started_federation_trains_through_handles() -> None:
    federation = MyCustomFederation(MyCustomClient, 3, Config(), None)
    assert not federation.running
    assert not any(node.built for node in federation.nodes)
    results = federation.train({"optimizer_fn": torch.optim.SGD, "loss_fn": nn.CrossEntropyLoss}, blocking=True)
    assert [each["samples"] for each in results] == [16, 16, 16]
    assert not federation.running
    assert federation.num_nodes == 3
    assert federation.node_ids == ["client_0", "client_1", "client_2"]
    versions = federation.pull_version(["client_1", "client_2"])
    assert [each["id"] for each in versions] == ["client_1", "client_2"]
    assert set(versions[0]["model"]["weights"]) == set(federation["client_0"].handle.model.state_dict())
    federation.stop()


def test_a_custom_node_and_a_custom_federation_of_the_overview_run() -> None:
    class MyCustomNode(FederatedNode):
        def build(self, **kwargs: Any) -> None:
            self.custom_model = self.create_custom_model()

        def create_custom_model(self) -> list[float]:
            assert self.id  # attributes exist before build
            return [0.0]

        def train(self, **kwargs: Any) -> Any:
            return self.custom_training_algorithm()

        def custom_training_algorithm(self) -> dict[str, float]:
            return {"value": self.custom_model[0] + 1}

    class CustomFederation(FederatedBase):
        def train(self, **kwargs: Any) -> Any:
            return self.coordinate_custom_algorithm()

        def coordinate_custom_algorithm(self) -> Any:
            return self.run_nodes(lambda node: {}, blocking=True)

    federation = CustomFederation(
        [VirtualNode(MyCustomNode, f"n{k}", "train", Config(), None) for k in range(2)], "ring"
    )
    assert federation.train() == [{"value": 1.0}, {"value": 1.0}]
    federation.stop()


def test_a_node_writes_its_metrics_to_a_database() -> None:
    stored: list[tuple[Any, Any]] = []

    class Database:
        def store_metrics(self, id: Any, metrics: Any) -> None:
            stored.append((id, metrics))

    class DatabaseIntegratedNode(FederatedNode):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.db_client = Database()

        def log_metrics(self, metrics: Any) -> None:
            self.db_client.store_metrics(self.id, metrics)

        def train(self, **kwargs: Any) -> None:
            self.log_metrics({"loss": 0.5})

    with FederatedBase([VirtualNode(DatabaseIntegratedNode, k, "train") for k in range(3)], "mesh") as federation:
        federation.train(blocking=True)
    assert sorted(stored) == [(k, {"loss": 0.5}) for k in range(3)]


def test_a_federation_is_monitored() -> None:
    class MetricsCollector:
        pass

    class Talking(FederatedNode):
        def train(self, **kwargs: Any) -> None:
            self.send("hello", {})
            for _ in self.neighbors:
                self.receive(block=True, timeout=10)

    class MonitoredFederation(FederatedBase):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.metrics_collector = MetricsCollector()

        def collect_federation_metrics(self) -> dict[str, Any]:
            return {
                "active_nodes": len([n for n in self.nodes if n.built]),
                "resource_utilization": self.get_resource_stats(),
                "message_throughput": self.tp_manager.get_stats(),  # type: ignore[union-attr]
            }

    federation = MonitoredFederation([VirtualNode(Talking, k, "train") for k in range(4)], "ring")
    federation.train(blocking=True)
    found = federation.collect_federation_metrics()
    assert found["active_nodes"] == 4
    assert set(found["resource_utilization"]) >= {0, 1, 2, 3}
    assert found["message_throughput"]["total_messages"] == 8
    assert found["message_throughput"]["node_loads"] == {0: 2, 1: 2, 2: 2, 3: 2}
    assert found["message_throughput"]["serialised"] == 4
    assert FederatedBase.collect_federation_metrics(federation)["running_nodes"] == 0
    federation.stop()


def test_a_star_of_server_and_clients_by_templates() -> None:
    class Server(FederatedNode):
        def train(self, rounds: int) -> dict[str, float]:
            x = torch.zeros(2)
            for t in range(rounds):
                self.send("model", {"x": x}, round=t)
                told = [self.receive(block=True, timeout=10, type="update", round=t) for _ in self.neighbors]
                x = torch.stack([each.body["x"] for each in told if each is not None]).mean(0)
                self.update_version(x=x)
            return {"x": float(x[0])}

    class Client(FederatedNode):
        def train(self, rounds: int) -> None:
            for t in range(rounds):
                told = self.receive(block=True, timeout=10, type="model", round=t)
                assert told is not None
                assert told.sender_id == "server"
                self.send("update", {"x": told.body["x"] + 1}, to="server", round=t)

    schema = StarFederatedLearningSchema(Server, Client, ["train"] * 3, Config(), None)
    assert schema.node_ids == ["server", "client_0", "client_1", "client_2"]
    metrics = schema.train({"rounds": 5}, {"rounds": 5}, blocking=True)
    assert metrics[0] == {"x": 5.0}
    assert schema.pull_version("server")["n_version"] == 5
    schema.stop()
    with pytest.raises(FederationError, match="neither"):
        StarFederatedLearningSchema(Server, None, ["train"])


def test_remote_and_ray_are_what_samples_need_of_them() -> None:
    @remote
    class A(FederatedNode):
        def train(self, **kwargs: Any) -> None:
            raise KeyError("a")

    @remote(max_concurrency=200, num_gpus=1)
    class B(A):
        pass

    @ray.remote(max_restarts=3, max_task_retries=2)
    class ResilientFederatedNode(B):
        pass

    node = VirtualNode(ResilientFederatedNode, "a", "train", None, None)
    assert not node.built
    node.build(1, None)
    assert ray.get(node.handle.ping.remote(), timeout=5) == "pong"
    with pytest.raises(KeyError):
        ray.get(node.handle._train.remote())
    with pytest.raises(AttributeError):
        node.handle.tarin  # noqa: B018


def test_a_virtual_node_is_built_once_whatever_threads_ask() -> None:
    built = []

    class Counting(FederatedNode):
        def build(self, **kwargs: Any) -> None:
            built.append(kwargs)

    node = VirtualNode(Counting, "a", "train", kwargs={"size": 3})
    threads = [threading.Thread(target=node.build) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert built == [{"size": 3}]


def test_a_queue_has_a_front_a_bound_and_its_own_empty() -> None:
    queue = Queue(maxsize=2)
    queue.put("b")
    queue.put(Message("STOP"), index=0)
    with pytest.raises(Queue.Full):
        queue.put("c", block=False)
    assert queue.get().header == "STOP"
    assert queue.get(block=False) == "b"
    with pytest.raises(Queue.Empty):
        queue.get(block=True, timeout=0.01)
    assert issubclass(EndProcessException, Exception)
