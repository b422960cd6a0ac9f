"""Virtual workers: without lies, ordinary training; with them, the experiment of the literature."""

from __future__ import annotations

import weakref
from collections import namedtuple
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from byzflow.errors import NotEnoughSenders, SpecError
from byzflow_lightning import VirtualWorkers, batches
from byzflow_lightning.virtual_workers import split_loaders
from byzflow_lightning.worker_refusals import check_training
from tests.lightning.small import PACKAGES, distance, fit, lightning_as_it_is, loader, make_module, network, samples


def without_lies(n: int = 4) -> VirtualWorkers:
    return VirtualWorkers(n, operator="mean", momentum=0)


class Shared(nn.Module):
    """One matrix, used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh()).tanh())  # type: ignore[no-any-return]


class Spare(nn.Module):
    """A frozen layer, and one that nothing goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.net, self.unused = nn.Linear(6, 6).requires_grad_(False), network(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.frozen(x))  # type: ignore[no-any-return]


def scheduled(parameters: Any) -> Any:
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


def with_extras(module: Any, batch: Any, batch_idx: int) -> dict[str, Any]:
    loss = functional.cross_entropy(module.net(batch[0]), batch[1])
    return {"loss": loss, "size": len(batch[1])}


# With no lies, no momentum and the mean


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"trainer": {"accumulate_grad_batches": 2}},  # of five batches, so the last stands alone
        {"trainer": {"gradient_clip_val": 0.1}},
        {"trainer": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}},
        {"module": {"optimizer": scheduled}},
        {"module": {"step": with_extras}},
        {"net": Shared},
        {"net": Spare},
        {"trainer": {"precision": "64-true"}},
    ],
    ids=["plain", "accumulation", "clip-norm", "clip-value", "adam-schedule", "mapping", "shared", "spare", "float64"],
)
def test_the_mean_of_workers_is_ordinary_training(package: str, case: dict[str, Any]) -> None:
    made = case.get("net", network)()
    start = made.state_dict()
    start = {name: each.clone() for name, each in start.items()}
    modules = []
    for callbacks in ([without_lies()], []):
        net = case.get("net", network)()
        net.load_state_dict(start)
        modules.append(make_module(package, net, **case.get("module", {})))
        fit(modules[-1], loader(), *callbacks, package=package, **case.get("trainer", {}))
    assert distance(*modules) < 1e-6
    moved = max(float((a.cpu() - start[name]).abs().max()) for name, a in modules[0].net.state_dict().items())
    assert moved > 0.01
    if case.get("net") is Spare:
        assert modules[0].net.unused.weight.grad is None
        assert modules[0].net.frozen.weight.grad is None


def test_bf16_mixed_rounds_as_ordinary_training_does() -> None:
    modules = []
    for callbacks in ([without_lies(1)], [without_lies(4)], []):
        modules.append(make_module())
        fit(modules[-1], loader(), *callbacks, precision="bf16-mixed")
    assert distance(modules[0], modules[2]) == 0
    assert 0 < distance(modules[1], modules[2]) < 0.02  # parts of a batch round otherwise
    assert modules[0].net[0].weight.dtype == torch.float32


def half_precision(package: str, init_scale: float = 2.0**16) -> dict[str, Any]:
    """16-mixed as on a GPU: Lightning itself takes bf16 on a CPU."""
    with lightning_as_it_is():
        plugins = import_module(f"{package}.plugins")
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=1000)
    return {"plugins": [plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


def test_16_mixed_scales_and_skips_as_ordinary_training_does() -> None:
    """From a loss scale that is too large: the first steps are skipped, the scale shrinks, then it trains."""
    modules, scales = [], []
    for callbacks in ([without_lies(1)], []):
        modules.append(make_module())
        trainer = fit(modules[-1], loader(), *callbacks, **half_precision(PACKAGES[0], 2.0**22))
        scales.append(trainer.precision_plugin.scaler.get_scale())
    assert distance(*modules) < 1e-6
    assert distance(modules[0], make_module()) > 0.01
    assert scales[0] == scales[1] < 2.0**22


def test_a_nan_from_a_liar_does_not_stop_training_in_16_mixed() -> None:
    workers = VirtualWorkers(6, 2, "nan", "trimmed_mean")
    module = make_module()
    trainer = fit(module, loader(), workers, **half_precision(PACKAGES[0], 1024.0))
    assert trainer.precision_plugin.scaler.get_scale() == 1024  # no step was skipped
    assert distance(module, make_module()) > 0.01
    assert workers.aggregation is not None
    assert workers.aggregation.rejected == (0, 1)


def test_a_model_in_bf16_keeps_momenta_in_float32() -> None:
    workers = VirtualWorkers(4)
    module = make_module()
    fit(module, loader(), workers, precision="bf16-true")
    assert module.net[0].weight.dtype == torch.bfloat16
    assert {rows.dtype for rows in workers._momenta.rows.values()} == {torch.float32}


def test_momentum_is_each_workers_own() -> None:
    """By hand: two workers, two steps, m = 0.5 m + 0.5 g."""
    seen: list[Tensor] = []

    def step(module: Any, batch: Any, batch_idx: int) -> Tensor:
        seen.append(batch[0].mean(0))
        return (module.net(batch[0])).mean()

    net = nn.Linear(6, 1, bias=False)
    start = net.weight.detach().clone()
    module = make_module(net=net, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), step=step)
    workers = VirtualWorkers(2, momentum=0.5)
    fit(module, loader(batch_size=30), workers, max_epochs=1)
    first = [0.5 * seen[0], 0.5 * seen[1]]
    second = [0.5 * first[0] + 0.5 * seen[2], 0.5 * first[1] + 0.5 * seen[3]]
    moved = (sum(first) + sum(second)) / 2
    torch.testing.assert_close(module.net.weight[0], start[0] - moved)
    torch.testing.assert_close(workers._momenta.rows["net.weight"][:, 0], torch.stack(second))


def test_one_graph_is_alive_at_a_time() -> None:
    alive: list[int] = []
    born: list[weakref.ref[Tensor]] = []

    def step(module: Any, batch: Any, batch_idx: int) -> Tensor:
        alive.append(sum(each() is not None for each in born))
        hidden = module.net[0](batch[0])
        born.append(weakref.ref(hidden))
        return functional.cross_entropy(module.net[2](hidden.tanh()), batch[1])

    fit(make_module(step=step), loader(), VirtualWorkers(6, 2, "alie", "median"))
    assert len(alive) == 3 * 5 * 4  # two liars compute nothing: this attack does not look at what they would have
    assert set(alive) == {0}


def test_the_module_gets_its_training_step_back() -> None:
    module = make_module()
    fit(module, loader(), without_lies())
    assert "training_step" not in vars(module)
    assert "log" not in vars(module)

    def fails(module: Any, batch: Any, batch_idx: int) -> Tensor:
        raise ZeroDivisionError

    module = make_module(step=fails)
    with pytest.raises(ZeroDivisionError):
        fit(module, loader(), VirtualWorkers(4, 1, "sign_flip", poison=lambda batch: batch))
    assert "training_step" not in vars(module)
    assert "log" not in vars(module)


# Liars


def test_rejected_workers_are_named_and_logged() -> None:
    workers = VirtualWorkers(6, 2, "nan", "trimmed_mean")
    module = make_module()
    trainer = fit(module, loader(), workers, log_every_n_steps=1)
    assert workers.aggregation is not None
    assert workers.aggregation.rejected == (0, 1)
    assert all(bool(torch.isfinite(each).all()) for each in module.parameters())
    assert trainer.progress_bar_metrics["rejected"] == 2
    assert trainer.progress_bar_metrics["byzantine_weight"] == 0
    logged = {name: float(each) for name, each in trainer.logged_metrics.items()}
    assert sum(logged[f"virtual_workers/weight/{i}"] for i in range(6)) == pytest.approx(1)
    assert logged["virtual_workers/aggregation_ms"] > 0


def test_an_honest_worker_whose_gradient_breaks_is_left_out_and_keeps_its_momentum() -> None:
    workers = VirtualWorkers(4, 1, None, "trimmed_mean")
    calls = 0

    def step(module: Any, batch: Any, batch_idx: int) -> Tensor | None:
        nonlocal calls
        calls += 1
        loss = functional.cross_entropy(module.net(batch[0]), batch[1])
        return {19: loss * torch.nan, 20: None}.get(calls, loss)  # the third and the fourth of the last step

    module = make_module(step=step)
    x, y = samples()
    fit(module, torch.utils.data.DataLoader(list(zip(x, y, strict=True)), 12), workers, max_epochs=1)
    assert workers.aggregation is not None
    assert workers.aggregation.rejected == (2, 3)
    assert calls == 20
    assert all(bool(torch.isfinite(rows).all()) for rows in workers._momenta.rows.values())
    assert all(bool((rows[2] != 0).any()) for rows in workers._momenta.rows.values())
    assert all(bool(torch.isfinite(each).all()) for each in module.parameters())


def test_a_step_that_every_worker_skips_is_skipped() -> None:
    module = make_module(step=lambda module, batch, batch_idx: None)
    before = module.net[0].weight.clone()
    fit(module, loader(), without_lies())
    assert torch.equal(module.net[0].weight, before)


def test_poisoned_forwards_leave_nothing_behind_but_their_gradient() -> None:
    """BatchNorm's statistics, and the logged loss, are those of the honest workers."""
    modules, trainers = [], []
    for poison in (lambda batch: (batch[0] * 1e4, 2 - batch[1]), lambda batch: (batch[0] * 0, batch[1])):
        net = nn.Sequential(nn.BatchNorm1d(6), network())
        modules.append(make_module(net=net, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)))
        trainers.append(fit(modules[-1], loader(), VirtualWorkers(4, 1, None, "median", poison=poison)))
    assert distance(*modules) == 0
    assert int(modules[0].net[0].num_batches_tracked) == 3 * 5 * 3
    assert torch.equal(trainers[0].callback_metrics["loss"], trainers[1].callback_metrics["loss"])


def test_poison_without_an_attack_moves_the_mean_and_not_the_median() -> None:
    def poison(batch: Any) -> Any:
        return batch[0] * 1e3, batch[1]

    modules = {}
    for rule in ("mean", "median"):
        modules[rule] = make_module(net=nn.Linear(6, 3))
        fit(modules[rule], loader(), VirtualWorkers(4, 1, operator=rule, momentum=0, poison=poison))
    size = {rule: float(module.net.weight.detach().abs().max()) for rule, module in modules.items()}
    assert size["mean"] > 10 * size["median"]


@pytest.mark.parametrize("attack", ["sign_flip(knowledge=own)", "model_replacement", "sampled(attack=ipm)"])
def test_attacks_that_start_from_the_attackers_own_rows(attack: str) -> None:
    workers = VirtualWorkers(6, 2, attack, "nnm | median")
    fit(make_module(), loader(), workers)
    assert workers.computing == range(6)
    assert workers.aggregation is not None
    assert workers.aggregation.rejected == ()


@pytest.mark.parametrize("f", [0, 2])
def test_no_attack_or_nobody_to_attack(f: int) -> None:
    modules = [make_module(), make_module()]
    fit(modules[0], loader(), VirtualWorkers(6, f, "ipm" if not f else None, "trimmed_mean"))
    fit(modules[1], loader(), VirtualWorkers(6, f, None, "trimmed_mean"))
    assert distance(*modules) == 0


def test_layers_that_thaw_begin_with_no_momentum() -> None:
    class Thaw(type(without_lies()).__mro__[1]):  # type: ignore[misc]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                pl_module.net[0].requires_grad_(True)

    module = make_module()
    module.net[0].requires_grad_(False)
    before = module.net[0].weight.clone()
    workers = VirtualWorkers(6, 1, "gaussian", "centered_clipping(tau=1)")
    fit(module, loader(), Thaw(), workers)
    assert set(workers._momenta.rows) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    assert not torch.equal(module.net[0].weight, before)


# Batches


@dataclass
class Sample:
    x: Tensor
    texts: list[str]


Pair = namedtuple("Pair", "x y")


def test_batches_of_every_kind_are_cut() -> None:
    x = torch.arange(10)
    batch = {
        "x": x,
        "pair": Pair(x, np.arange(10)),
        "sample": Sample(x, [str(i) for i in range(10)]),
        "list": [x, (x, torch.tensor(3.0))],
        "rate": 0.5,
    }
    parts = batches.split(batch, 3)
    assert [part["x"].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert parts[1]["sample"].texts == ["3", "4", "5"]
    assert isinstance(parts[1]["pair"], Pair)
    assert parts[2]["pair"].y.tolist() == [6, 7, 8, 9]
    assert parts[0]["list"][1][1] == 3
    assert parts[0]["rate"] == 0.5
    assert batch["x"] is x
    assert parts[0]["x"].data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(3), r"a batch of 3 samples cannot be shared by n=4 workers: .*batch_size.*drop_last"),
        ([torch.ones(8), torch.ones(9)], r"first dimensions \[8, 9\] cannot be told apart: pass split="),
        ([1.0], r"with no tensor cannot be told apart"),
        ([torch.ones(8), {1}], r"a batch with a set in it cannot be split: pass split="),
    ],
)
def test_a_batch_that_cannot_be_shared_out(batch: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        batches.split(batch, 4)


def test_the_last_batch_may_be_too_small() -> None:
    with pytest.raises(SpecError, match="drop_last=True"):
        fit(make_module(), loader(batch_size=29), VirtualWorkers(4))


def test_a_loader_for_each_worker() -> None:
    """The same as cutting the batches that the loaders' samples make up."""
    modules = [make_module(), make_module()]
    whole = loader(batch_size=12)
    order = torch.arange(60).view(5, 3, 4).transpose(0, 1).reshape(3, -1)  # each worker's samples
    x, y = samples()
    each = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[i], y[i]), 4) for i in order]
    fit(modules[0], whole, VirtualWorkers(3, momentum=0.5))
    fit(modules[1], each, VirtualWorkers(3, momentum=0.5, split=split_loaders))
    assert distance(*modules) == 0
    with pytest.raises(SpecError, match="a batch for each of n=4 workers, got 3"):
        fit(make_module(), each, VirtualWorkers(4, split=split_loaders))


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 4, "f": 4}, "0 <= f < n, got n=4, f=4"),
        ({"n": 4, "momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"n": 4, "f": 1, "operator": "nnm"}, "no aggregation"),
        ({"n": 4, "operator": "ipm"}, "needs f|no aggregation"),
        ({"n": 4, "f": 1, "attack": "median"}, r"median is no attack"),
        ({"n": 4, "f": 1, "attack": "ipm(f=2)"}, "f=2 attackers: VirtualWorkers has f=1"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        VirtualWorkers(**arguments)


def test_a_rule_that_needs_more_workers() -> None:
    with pytest.raises(NotEnoughSenders, match="krum"):
        VirtualWorkers(6, 2, "ipm", "krum")


def test_training_that_would_be_wrong_is_refused_before_it_starts() -> None:
    manual = make_module(step=lambda module, batch, batch_idx: pytest.fail("it trained"))
    manual.automatic_optimization = False
    with pytest.raises(SpecError, match="automatic optimization"):
        fit(manual, loader(), without_lies())
    line_search = make_module(
        optimizer=torch.optim.LBFGS, step=lambda module, batch, batch_idx: pytest.fail("it trained")
    )
    with pytest.raises(SpecError, match="LBFGS"):
        fit(line_search, loader(), without_lies())
    with lightning_as_it_is():
        from lightning.pytorch.strategies import FSDPStrategy

        trainer = SimpleNamespace(optimizers=[], strategy=FSDPStrategy(cpu_offload=True))
    with pytest.raises(SpecError, match="FSDPStrategy: use one device, or"):
        check_training(trainer, make_module())


def test_an_optimizer_that_asks_twice_is_refused() -> None:
    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            return super().step(closure)

    module = make_module(optimizer=lambda p: Twice(p, lr=0.1))
    with pytest.raises(SpecError, match="calls its closure again"):
        fit(module, loader(), without_lies())


def test_a_mapping_without_a_loss() -> None:
    with pytest.raises(SpecError, match="without 'loss': it has error"):
        fit(make_module(step=lambda module, batch, batch_idx: {"error": torch.ones(())}), loader(), without_lies())


# Checkpoints


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("rule", "attack"),
    [
        ("trimmed_mean", "gaussian"),
        ("centered_clipping(tau=1)", "mimic_adaptive(warmup=4)"),
        ("momentum | bucketing | krum", "alie(z=1.5)"),
    ],
)
def test_a_resumed_run_is_the_same_bit_by_bit(package: str, rule: str, attack: str, tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: Path | None = None) -> tuple[Any, Any, VirtualWorkers]:
        module = make_module(package, optimizer=lambda p: torch.optim.Adam(p, lr=0.05))
        workers = VirtualWorkers(12, 1, attack, rule)
        return module, fit(module, loader(), workers, package=package, max_epochs=epochs, ckpt_path=ckpt_path), workers

    whole, _, workers = run(4)
    _, trainer, _ = run(2)
    with lightning_as_it_is():
        trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    resumed, _, others = run(4, tmp_path / "half.ckpt")
    assert distance(whole, resumed) == 0
    assert all(torch.equal(rows, others._momenta.rows[name]) for name, rows in workers._momenta.rows.items())
    fresh, _, _ = run(2)
    assert distance(whole, fresh) > 0


def test_a_checkpoint_of_another_set_up_is_refused(tmp_path: Path) -> None:
    trainer = fit(make_module(), loader(), VirtualWorkers(4, 1, "gaussian", "median"), max_epochs=1)
    with lightning_as_it_is():
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    for workers, message in (
        (VirtualWorkers(3, 1, "gaussian", "median"), r"n=4, momentum=0.9 on 1 ranks, this run has n=3"),
        (VirtualWorkers(4, 1, "gaussian", "median", momentum=0), r"momentum=0.9 on 1 ranks.*momentum=0 on 1"),
        (VirtualWorkers(4, 1, "ipm", "median"), r"holds round, unknown to attack ipm"),
        (VirtualWorkers(4, 1, "gaussian(knowledge=own)", "median"), r"momenta are of another attack"),
    ):
        with pytest.raises(SpecError, match=message):
            fit(make_module(), loader(), workers, ckpt_path=tmp_path / "a.ckpt")


def test_a_second_fit_begins_anew() -> None:
    workers, modules = VirtualWorkers(6, 1, "gaussian", "median"), [make_module(), make_module()]
    for module in modules:
        fit(module, loader(), workers)
    assert distance(*modules) == 0
