"""A LightningModule and a DataModule as a Flower client: the same training as by hand, and nothing left behind."""

from __future__ import annotations

import random
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from byzflow.errors import SpecError
from tests.lightning.small import PACKAGES, make_module, network, samples

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Flower's own dependencies deprecate
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import FedAvg

    from byzflow_flower import LocalGrid, Robust, reveal_partition
    from byzflow_lightning import client_app

BATCH = 8


def validating(package: str = PACKAGES[0], net: nn.Module | None = None, adam: bool = False) -> Any:
    base = type(make_module(package, network() if net is None else net))

    class Validating(base):  # type: ignore[misc,valid-type]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val-loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05) if adam else torch.optim.SGD(self.parameters(), lr=0.3)

    return Validating()


def data(partition: int = 0, package: str = PACKAGES[0], shuffle: bool = False) -> Any:
    x, y = samples()
    mine = TensorDataset(x[partition::3], y[partition::3])

    class Data(import_module(package).LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return DataLoader(mine, BATCH, shuffle=shuffle)

        def val_dataloader(self) -> Any:
            return DataLoader(mine, BATCH)

    return Data()


def ask(app: ClientApp | LocalGrid, arrays: dict[str, Tensor], kind: str = "train", server_round: int = 1) -> Message:
    grid = app if isinstance(app, LocalGrid) else LocalGrid({1: app})
    content = RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord({"server-round": server_round})})
    (reply,) = grid.send_and_receive([Message(content, 1, kind)])
    return reply


def weights(reply: Message) -> dict[str, Tensor]:
    assert not reply.has_error(), reply.error
    return dict(reply.content.array_records["arrays"].to_torch_state_dict())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("package", "trainer"),
    [*((package, {"max_epochs": 2}) for package in PACKAGES), (PACKAGES[0], lambda context: {"max_epochs": 2})],
)
def test_it_trains_as_a_loop_by_hand_and_leaves_nothing_behind(
    package: str, trainer: Any, folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    app = client_app(
        module=lambda context: validating(package),
        datamodule=lambda context: data(0, package),
        trainer=trainer,
    )
    start = validating(package)
    capfd.readouterr()
    reply = ask(app, start.state_dict())  # warnings are errors here
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert list(folder.iterdir()) == []

    optimizer = torch.optim.SGD(start.parameters(), lr=0.3)
    for _ in range(2):
        for x, y in data().train_dataloader():
            loss = functional.cross_entropy(start.net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, value in weights(reply).items():
        assert torch.equal(value, start.state_dict()[name])
    metrics = dict(reply.content.metric_records["metrics"])
    assert metrics.pop("num-examples") == 20
    assert metrics == {"loss": pytest.approx(loss.item())}


def test_it_evaluates_without_training(folder: Path) -> None:
    app = client_app(module=lambda context: validating(), datamodule=lambda context: data())
    start = validating()
    reply = ask(app, start.state_dict(), "evaluate")
    assert not reply.has_error(), reply.error
    metrics = dict(reply.content.metric_records["metrics"])
    x, y = samples()
    expected = functional.cross_entropy(start.net(x[::3]), y[::3]).item()
    assert metrics == {"val-loss": pytest.approx(expected), "num-examples": 20}
    assert not reply.content.array_records


def test_the_optimizers_memory_outlives_the_round_if_asked() -> None:
    start = validating().state_dict()
    ends = {}
    for keep in (False, True):
        app = client_app(
            module=lambda context: validating(adam=True), datamodule=lambda context: data(), keep_optimizer=keep
        )
        grid = LocalGrid({1: app})
        ends[keep] = weights(ask(grid, weights(ask(grid, start, server_round=1)), server_round=2))
    once = client_app(
        module=lambda context: validating(adam=True), datamodule=lambda context: data(), trainer={"max_epochs": 2}
    )
    straight = weights(ask(once, start))
    assert all(torch.equal(value, straight[name]) for name, value in ends[True].items())
    assert any(not torch.equal(value, straight[name]) for name, value in ends[False].items())


def test_an_optimizer_that_remembers_lists_is_refused() -> None:
    module = make_module(optimizer=torch.optim.LBFGS)
    app = client_app(module=lambda context: module, datamodule=lambda context: data(), keep_optimizer=True)
    reply = ask(app, module.state_dict())
    assert "keep_optimizer can carry tensors and numbers only" in reply.error.reason


def test_deltas_are_what_training_changed() -> None:
    start = validating(net=nn.Sequential(nn.BatchNorm1d(6), network())).state_dict()

    def run(**options: Any) -> dict[str, Tensor]:
        return weights(
            ask(
                client_app(
                    module=lambda context: validating(net=nn.Sequential(nn.BatchNorm1d(6), network())),
                    datamodule=lambda context: data(),
                    **options,
                ),
                start,
            )
        )

    plain, deltas = run(), run(deltas=True)
    torch.testing.assert_close(deltas["net.1.0.weight"], plain["net.1.0.weight"] - start["net.1.0.weight"])
    assert deltas["net.0.num_batches_tracked"] == plain["net.0.num_batches_tracked"] == 3
    lying = run(deltas=True, attack="sign_flip", f=1)  # the lie is about the update, whichever way it is sent
    torch.testing.assert_close(lying["net.1.0.weight"], -deltas["net.1.0.weight"])


def test_buffers_go_by_policy() -> None:
    def module(context: Context) -> Any:
        return validating(net=nn.Sequential(nn.BatchNorm1d(6), network()))

    start = module(None).state_dict()  # type: ignore[arg-type]
    mean, count = "net.0.running_mean", "net.0.num_batches_tracked"
    replies = {}
    for policy in ("send", "received", "local"):
        grid = LocalGrid({1: client_app(module=module, datamodule=lambda context: data(), buffers=policy)})  # type: ignore[arg-type]
        ask(grid, start)
        replies[policy] = weights(ask(grid, start)), grid.contexts[1].state
    assert not torch.equal(replies["send"][0][mean], start[mean])
    for policy in ("received", "local"):
        assert torch.equal(replies[policy][0][mean], start[mean])
        assert replies[policy][0][count] == 0
    own = replies["local"][1].array_records["byzflow-buffers"].to_torch_state_dict()
    assert own[count] == 6  # two rounds of three batches
    assert set(own) == {mean, count, "net.0.running_var"}
    assert not replies["received"][1].array_records


def test_random_numbers_depend_on_seed_round_and_partition_alone() -> None:
    def run(seed: int | None, server_round: int = 1) -> Tensor:
        app = client_app(module=lambda context: validating(), datamodule=lambda context: data(shuffle=True), seed=seed)
        return weights(ask(app, start, server_round=server_round))["net.0.weight"]

    start = validating().state_dict()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    first = run(0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # type: ignore[index,union-attr]
    torch.manual_seed(99)
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)
    assert not torch.equal(run(0, server_round=2), first)
    assert not torch.equal(run(None), run(None))


def flipped(batch: Any) -> Any:
    return batch[0], 2 - batch[1]


@pytest.mark.parametrize(("attack", "poison"), [("sign_flip(scale=30)", None), ("label-flip", flipped), ("nan", None)])
def test_liars_among_honest_clients_in_a_robust_round(attack: str, poison: Any) -> None:
    app = client_app(
        module=lambda context: validating(),
        datamodule=lambda context: data(int(context.node_config["partition-id"]) % 3),
        attack=attack,
        f="f",
        poison=poison,
        mods=[reveal_partition],
    )
    grid = LocalGrid(dict.fromkeys(range(1, 8), app), run_config={"f": 2})
    strategy = Robust(FedAvg(), "nnm | trimmed_mean", f=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = strategy.start(grid=grid, initial_arrays=ArrayRecord(validating().state_dict()), num_rounds=6)
    net = validating()
    net.load_state_dict(result.arrays.to_torch_state_dict())
    x, y = samples()
    assert (net.net(x).argmax(1) == y).float().mean() > 0.8
    assert {each.node_id for each in strategy.audit[-1].rejected} == ({1, 2} if attack == "nan" else set())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffers": "mine"}, "'send', 'received' or 'local', got 'mine'"),
        ({"attack": "sign_flop"}, "did you mean"),
        ({"attack": "label_flip"}, "label_flip needs client_app"),
    ],
)
def test_options_that_do_not_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        client_app(module=lambda context: None, datamodule=lambda context: None, **options)


def test_a_module_that_is_none() -> None:
    app = client_app(module=lambda context: network(), datamodule=lambda context: data())
    assert "must give a LightningModule, got Sequential" in ask(app, network().state_dict()).error.reason


def test_virtual_workers_inside_a_client() -> None:
    """A client may itself be a simulation; its Trainer's callbacks are copies, so rounds do not meet."""
    from byzflow_lightning import VirtualWorkers

    workers = VirtualWorkers(4, 1, "sign_flip", "median", momentum=0)
    app = client_app(
        module=lambda context: validating(), datamodule=lambda context: data(), trainer={"callbacks": [workers]}
    )
    first = weights(ask(app, validating().state_dict()))
    assert torch.equal(weights(ask(app, validating().state_dict()))["net.0.weight"], first["net.0.weight"])
    assert workers.aggregation is None
