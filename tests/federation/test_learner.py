"""What one node does alone, and that all of its state is where it says."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from byzflow.errors import DataError, ModelError, NonFiniteRows, SpecError
from byzflow.federation.datasets import load
from byzflow.federation.learner import Learner
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.models import make_model
from byzflow.federation.optimizer import OptimizerStep

SPLIT = load("synthetic", train=200, test=100, features=6, classes=3, spread=1.5)
DATA = (SPLIT.train_x, SPLIT.train_y)


class Dropping(nn.Module):
    """Normalisation, dropout and a frozen layer, of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.layers[0].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


class Lightning(Dropping):
    """What a learner knows a LightningModule by."""

    made: Any = None

    def log(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("there is no trainer")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = functional.cross_entropy(self(x), y)
        self.log("twice", 2 * loss, prog_bar=True)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return self.made or torch.optim.Adam(self.parameters(), lr=0.01)


def mlp(**options: Any) -> Learner:
    return Learner(make_model("mlp", (6,), 3), options.pop("data", DATA), batch_size=16, **options)


def same(one: Learner, two: Learner) -> bool:
    a, b = one.state(), two.state()
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def test_the_gradient_is_the_loss_s() -> None:
    learner = mlp()
    x, y = learner.batch()
    functional.cross_entropy(learner.module(x), y).backward()
    expected = torch.cat([each.grad.flatten() for each in learner.module.parameters() if each.grad is not None])
    for each in (learner.gradient(x, y), learner.gradient((x, y))):
        torch.testing.assert_close(each, expected)
    assert learner.last_loss == pytest.approx(learner.loss(x, y))


def test_half_steps_are_those_of_the_definition() -> None:
    learner = mlp(lr=0.1, momentum=0.9, weight_decay=0.01)
    m = torch.zeros(len(learner.model))
    for _ in range(3):
        x, batch = learner.model.get().clone(), learner.batch()
        m = 0.9 * m + 0.1 * (learner.gradient(*batch) + 0.01 * x)
        y = learner.half_step(*batch)
        torch.testing.assert_close(y, x - 0.1 * m)
        assert torch.equal(learner.model.get(), x)
        learner.apply(y)


def test_everyone_learns_the_data() -> None:
    gossip, star, local = mlp(lr=0.3), mlp(lr=0.3, momentum=0.5), mlp(lr=0.3)
    for _ in range(100):
        gossip.apply(gossip.half_step())
        star.step(star.gradient())
    local.train(100)
    for learner in (gossip, star, local):
        found = learner.evaluate(SPLIT)
        assert found["accuracy"] > 0.9
        assert found == learner.evaluate((SPLIT.test_x, SPLIT.test_y))
    assert torch.equal(gossip.model.get(), local.model.get())  # without momentum all of this is one algorithm


def test_local_training_tells_its_update_and_is_sgd() -> None:
    learner, reference = mlp(lr=0.1, momentum=0.9, weight_decay=0.01, local_steps=5), mlp()
    before = learner.model.get().clone()
    trained = learner.train()
    sgd = torch.optim.SGD(reference.module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        x, y = reference.batch()
        sgd.zero_grad()
        functional.cross_entropy(reference.module(x), y).backward()
        sgd.step()
    torch.testing.assert_close(learner.model.get(), reference.model.get())
    assert torch.equal(trained.update, learner.model.get() - before)
    assert trained.samples == 80
    assert trained.metrics.keys() == {"loss", "skipped"}


def test_torch_s_optimisers_move_the_vector() -> None:
    made = mlp(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
    own = mlp(lr=0.1, momentum=0.9)
    torch.testing.assert_close(made.train(5).update, own.train(5).update)
    assert all(each.grad is None for each in made.module.parameters())


def test_fedprox_holds_the_model_back() -> None:
    free, held = mlp(lr=0.1), mlp(lr=0.1, prox_mu=1.0)
    assert torch.equal(free.train(1).update, held.train(1).update)
    assert held.train(30).update.norm() < 0.8 * free.train(30).update.norm()


@pytest.mark.parametrize("make", [lambda: make_model("mlp", (6,), 3), Dropping, Lightning])
def test_equal_seeds_give_equal_bits_and_leave_global_random_numbers_alone(make: Any) -> None:
    state = torch.get_rng_state()
    one, two, other = (Learner(make(), DATA, batch_size=16, seed=seed, momentum=0.9) for seed in (3, 3, 4))
    for learner in (one, other, two):
        learner.train(5)
        learner.apply(learner.half_step())
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one, two)
    assert one.model.digest(whole=True) == two.model.digest(whole=True)
    assert not same(one, other)


def test_threads_do_not_disturb_each_other() -> None:
    alone = Learner(Dropping(), DATA, batch_size=16)
    alone.train(20)
    crowd = [Learner(Dropping(), DATA, batch_size=16) for _ in range(4)]
    threads = [threading.Thread(target=learner.train, args=(20,)) for learner in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(learner, alone) for learner in crowd)


def loader(kind: str) -> Any:
    data = TensorDataset(*DATA)
    match kind:
        case "tensors":
            return DATA
        case "loader":
            return DataLoader(data, 16, shuffle=True)
        case "own generator":
            return DataLoader(data, 16, shuffle=True, generator=torch.Generator())
        case _:
            return [(DATA[0][i : i + 16], DATA[1][i : i + 16]) for i in range(0, 190, 16)]


@pytest.mark.parametrize("kind", ["tensors", "loader", "own generator", "list"])
@pytest.mark.parametrize("steps", [0, 1, 5, 12, 13, 29])
def test_a_restarted_node_goes_on_bit_by_bit(kind: str, steps: int) -> None:
    def make() -> Learner:
        return Learner(Dropping(), loader(kind), batch_size=16, momentum=0.9, lr=0.1)

    def go(learner: Learner, count: int) -> None:
        for _ in range(count):
            learner.apply(learner.half_step())
            learner.step(learner.gradient())

    whole = make()
    go(whole, steps)
    saved = whole.state()
    go(whole, 9)
    again = make()
    again.load_state(saved)
    go(again, 9)
    assert same(whole, again)
    assert isinstance(saved["epoch"], int)


def test_epochs_differ_and_show_all_samples() -> None:
    learner = Learner(make_model("softmax", (6,), 3), DATA, batch_size=50)
    epochs = [torch.cat([learner.batch()[0] for _ in range(4)]) for _ in range(2)]
    assert not torch.equal(*epochs)
    assert torch.equal(*(each.sort(dim=0).values for each in epochs))
    loaded = Learner(make_model("softmax", (6,), 3), DataLoader(TensorDataset(*DATA), 50, shuffle=True))
    assert not torch.equal(loaded.batch()[0], [loaded.batch()[0] for _ in range(4)][-1])


def test_fewer_samples_than_a_batch() -> None:
    learner = mlp(data=(DATA[0][:3], DATA[1][:3]))
    assert len(learner.batch()[0]) == 3
    assert learner.train(2).samples == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_no_step(bad: float) -> None:
    learner = Learner(Dropping(), DATA, batch_size=16, momentum=0.9)
    learner.apply(learner.half_step())
    x, y = learner.batch()
    before = learner.state()
    assert not learner.gradient(x * bad, y).isfinite().all()
    assert torch.equal(learner.half_step(x * bad, y), learner.model.get())
    learner.batch_attack = lambda batch: (batch[0] * bad, batch[1])
    trained = learner.train(3)
    assert not trained.update.any()
    assert (trained.samples, trained.metrics) == (0, {"skipped": 3.0})
    after = learner.state()
    assert after["skipped"] == 4
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, after[name]), name  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("own", [False, True])
def test_a_step_out_of_the_dtypes_range_is_no_step(dtype: torch.dtype, own: bool) -> None:
    lr = torch.finfo(dtype).max
    optimizer = (lambda parameters: torch.optim.SGD(parameters, lr=lr)) if own else None
    model = make_model("mlp", (6,), 3).to(dtype)
    learner = Learner(model, (DATA[0].to(dtype) * 1000, DATA[1]), lr=lr, momentum=0.9, optimizer=optimizer)
    before = learner.model.get().clone()
    assert torch.equal(learner.half_step(), before)
    assert learner.mean is None
    trained = learner.train(3)
    assert torch.equal(learner.model.get(), before)
    assert not trained.update.any()
    assert (trained.samples, trained.metrics) == (0, {"skipped": 3.0})
    assert learner.skipped == 4


def test_a_state_that_does_not_fit_leaves_a_node_as_it_was() -> None:
    node = LearnerNode(mlp(), server_momentum=0.5)
    node.apply_server_update(torch.ones(len(node.learner.model)))
    before = node.state()
    for wrong in ({"position": 10**6}, {"server_velocity": torch.ones(2)}, {"vector": torch.ones(2)}):
        with pytest.raises((DataError, ModelError)):
            node.load_state({**before, "server_velocity": before["server_velocity"] * 2, **wrong})
        after = node.state()
        assert after.keys() == before.keys()
        assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name])) for name in before)


def test_aggregates_that_are_not_finite_or_do_not_fit_change_nothing() -> None:
    learner = mlp(momentum=0.9)
    learner.step(learner.gradient())
    before = learner.state()
    for bad in (torch.full((len(learner.model),), float("nan")), torch.full((len(learner.model),), 3e38) * 2):
        for use in (learner.step, learner.apply):
            with pytest.raises(NonFiniteRows):
                use(bad)
    for short in (torch.zeros(1), torch.zeros(len(learner.model) - 1)):
        for use in (learner.step, learner.apply):
            with pytest.raises(ModelError, match="numbers"):
                use(short)
    after = learner.state()
    assert all(torch.equal(torch.as_tensor(before[k]), torch.as_tensor(after[k])) for k in before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_server_and_workers_stay_equal(momentum: float) -> None:
    workers = [mlp(lr=0.1, momentum=momentum, seed=seed) for seed in range(3)]
    server, step, velocity = mlp().model, OptimizerStep(0.1, momentum), None
    for _ in range(5):
        aggregate = torch.stack([worker.gradient() for worker in workers]).mean(0)
        for worker in workers:
            worker.step(aggregate)
        new, velocity = step(server.get(), aggregate, velocity)
        server.set(new)
    assert {worker.model.digest() for worker in workers} == {server.digest()}


def test_every_product_is_rounded_by_itself() -> None:
    x, gradient, velocity = (each.numpy() for each in torch.randn(3, 1003, generator=torch.Generator().manual_seed(0)))
    lr, momentum, rest = (np.float32(each) for each in (0.1, 0.9, 1 - 0.9))
    step, tensors = OptimizerStep(0.1, 0.9), [torch.from_numpy(each) for each in (x, gradient, velocity)]
    for (new, kept), v in (
        (step(*tensors), velocity * momentum + gradient),
        (step.half(*tensors), velocity * momentum + gradient * rest),
    ):
        assert kept is not None
        np.testing.assert_array_equal(kept.numpy(), v)
        np.testing.assert_array_equal(new.numpy(), x - v * lr)


def test_buffers_and_frozen_parameters_have_no_gradient() -> None:
    learner = Learner(Dropping(), DATA, batch_size=16, buffers="mix", weight_decay=0.1, prox_mu=0.1)
    frozen = learner.module.layers[0].bias.clone()  # type: ignore[index, union-attr]
    gradient = learner.gradient()
    assert not gradient[~learner.model.trainable].any()
    assert gradient[learner.model.trainable].any()
    learner.train(5)
    assert torch.equal(learner.module.layers[0].bias, frozen)  # type: ignore[index, union-attr]
    given = Learner(Dropping(), DATA, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), buffers="mix")
    assert given.train(3).update[given.model.trainable].any()


def test_a_lightning_module_brings_its_own_loss_optimiser_and_numbers() -> None:
    learner = Learner(Lightning(), DataLoader(TensorDataset(*DATA), 16, shuffle=True))
    first = learner.train(1)
    assert first.metrics["twice"] == pytest.approx(2 * first.metrics["loss"])
    assert first.update.abs().max() == pytest.approx(0.01, rel=1e-3)  # Adam's first step
    learner.train(100)
    assert learner.evaluate(DataLoader(TensorDataset(SPLIT.test_x, SPLIT.test_y), 30))["accuracy"] > 0.9


def test_a_step_that_skips_is_counted() -> None:
    module = Lightning()
    module.training_step = lambda batch: None  # type: ignore[method-assign, assignment, misc]
    learner = Learner(module, DATA)
    assert learner.train(2).metrics == {"skipped": 2.0}
    assert not learner.gradient().any()


def test_optimisers_that_are_not_simple_are_refused() -> None:
    module = Lightning()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for made in ([optimizer], {"optimizer": optimizer}, ([optimizer], [])):
        module.made = made
        Learner(module, DATA).train(1)
    for made in (([optimizer], [schedule]), {"optimizer": optimizer, "lr_scheduler": schedule}, [optimizer, optimizer]):
        module.made = made
        with pytest.raises(ModelError, match="one optimizer and no schedule"):
            Learner(module, DATA).train(1)


def test_a_poisoned_node_trains_on_what_its_attack_gives() -> None:
    honest, poisoned = mlp(), mlp(batch_attack=lambda batch: (batch[0], 2 - batch[1]))
    (x, y), (x2, y2) = honest.batch(), poisoned.batch()
    assert torch.equal(x, x2)
    assert torch.equal(2 - y, y2)
    assert torch.equal(DATA[1], SPLIT.train_y)


def test_another_vector_s_loss_leaves_no_trace() -> None:
    learner = Learner(Dropping(), DATA, batch_size=16)
    x, y = learner.batch()
    before = learner.model.digest(whole=True)
    learner.module.train()
    assert learner.loss(x, y, at=torch.zeros(len(learner.model))) == pytest.approx(1.0986, abs=1e-4)
    assert learner.model.digest(whole=True) == before
    assert learner.module.training


def test_evaluation_without_labels_or_samples() -> None:
    learner = Learner(nn.Linear(6, 1), (DATA[0], DATA[0][:, :1]), loss=nn.MSELoss())
    assert learner.evaluate((DATA[0], DATA[0][:, :1])).keys() == {"loss"}
    found = mlp().evaluate((DATA[0][:0], DATA[1][:0]))
    assert all(value != value for value in found.values())
    big = (DATA[0].repeat(12, 1), DATA[1].repeat(12))
    assert mlp().evaluate(big)["loss"] == pytest.approx(mlp().evaluate(DATA)["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"velocitty": 1}, "unknown velocitty"),
        ({"epoch": None}, "missing or unknown epoch"),
        ({"epoch": torch.tensor(1)}, "epoch does not fit"),
        ({"vector": torch.zeros(3)}, r"vector does not fit .* torch.float32 of \(3,\)"),
        ({"mean": torch.zeros(3)}, "mean does not fit"),
        ({"velocity": 3}, "velocity does not fit"),
        ({"buffer/layers.1.running_mean": torch.zeros(8).double()}, "running_mean does not fit"),
    ],
)
def test_states_that_do_not_fit_change_nothing(change: dict[str, Any], message: str) -> None:
    learner = Learner(Dropping(), DATA, batch_size=16)
    learner.train(2)
    before = learner.model.digest(whole=True)
    state = {key: value for key, value in {**Learner(Dropping(), DATA).state(), **change}.items() if value is not None}
    with pytest.raises(ModelError, match=message):
        learner.load_state(state)
    assert learner.model.digest(whole=True) == before


@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_a_position_past_the_data_is_refused(kind: str) -> None:
    learner = Learner(Dropping(), loader(kind), batch_size=16)
    with pytest.raises(DataError, match=r"batches, not 99: is it other data"):
        learner.load_state({**learner.state(), "position": 99})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 0.0}, SpecError, "lr must be a finite number > 0, got 0.0"),
        ({"lr": float("nan")}, SpecError, "got nan"),
        ({"momentum": 1.0}, SpecError, "momentum must be >= 0 and < 1"),
        ({"weight_decay": -1.0}, SpecError, "weight_decay must be a finite number >= 0"),
        ({"prox_mu": float("inf")}, SpecError, "prox_mu"),
        ({"local_steps": 0}, SpecError, "local_steps must be an int >= 1"),
        ({"data": (DATA[0], DATA[1][:5])}, DataError, "as many samples as labels"),
        ({"data": (DATA[0][:0], DATA[1][:0])}, DataError, "got 0 and 0"),
        ({"data": 5}, DataError, "two tensors"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mlp(**options)


def test_models_and_loaders_that_cannot_be_trained() -> None:
    with pytest.raises(ModelError, match="Linear are frozen"):
        Learner(nn.Linear(6, 3).requires_grad_(False), DATA)
    with pytest.raises(ModelError, match="no parameters"):
        Learner(nn.Identity(), DATA)
    with pytest.raises(DataError, match="gave no batch in epoch 0"):
        Learner(nn.Linear(6, 3), []).batch()
    once = Learner(nn.Linear(6, 3), iter([DATA]))
    once.batch()
    with pytest.raises(DataError, match="gave no batch in epoch 1"):
        once.batch()
    with pytest.raises(ModelError, match=r"must be \(x, y\), got dict"):
        Learner(nn.Linear(6, 3), [{"x": DATA[0]}]).gradient()
    with pytest.raises(ModelError, match="must be one number"):
        Learner(nn.Linear(6, 3), DATA, loss=nn.CrossEntropyLoss(reduction="none")).gradient()
