"""Run by four ranks: Fabric, the other namespace, memory and resuming, the log, unfreezing, steps without a result."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytorch_lightning
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from byzflow.errors import ByzflowError
from byzflow_lightning import RobustDDP, RobustReducer, exchange
from tests.lightning.model import Liar, Manual, Net, blobs
from tests.lightning.run import QUIET, RANK, WORLD, fit, flat, fresh, half, identical

CHAIN = "nnm | trimmed_mean"


def everything() -> dict[str, Any]:
    """Every check of this module: name -> what it found."""
    checks = (
        overlap,
        skipped,
        starved,
        falsified,
        logged,
        resumed,
        other_world,
        unfrozen,
        layerwise,
        fabric,
        other_namespace,
        refused,
    )
    return {check.__name__: check() for check in checks}


def overlap() -> dict[str, Any]:
    """The whole gradient counts, however many buckets it travels in."""
    shard, overlapped = fresh(Net), fresh(Net)
    few = {"bucket_cap_mb": 1e-4}
    fit(shard, few, {}, RobustDDP(CHAIN, f=1))
    robust = RobustDDP(CHAIN, f=1, overlap=True)
    fit(overlapped, few, {}, robust)
    return {"difference": float((flat(shard) - flat(overlapped)).abs().max()), "identical": identical(flat(overlapped))}


def skipped() -> dict[str, Any]:
    """Every rank has NaN: nothing moves, in either precision."""
    found: dict[str, Any] = {}
    for name, options in (("32", dict), ("16", half)):
        module, robust = fresh(lambda: Liar("all nan")), RobustDDP("median", f=1)
        start = flat(module)
        trainer = fit(module, {}, options(), robust)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        found[name] = {
            "moved": not torch.equal(start, flat(module)),
            "skipped": robust.reducer.times_skipped,
            "left out": robust.reducer.times_left_out,
            "why": robust.reducer.audit.skipped,
            "scale": scaler.get_scale() if scaler else None,
        }
    return found


class Starved(Net):
    """Rank 0 gets pictures of NaN, and the last rank empty batches."""

    def __init__(self, empty: bool) -> None:
        super().__init__(norm=not empty)
        self.empty = empty

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        if self.empty and self.global_rank == WORLD - 1:
            x, y = x[:0], y[:0]
        if not self.empty and self.global_rank == 0:
            x = x * torch.nan
        return super().training_step((x, y), index)


def starved() -> dict[str, Any]:
    """Batches that are no good: gradients, and BatchNorm's statistics of rank 0."""
    found: dict[str, Any] = {}
    for name, empty, options in (("nan", False, {}), ("empty", True, {}), ("empty, overlap", True, {"overlap": True})):
        module, robust = fresh(lambda empty=empty: Starved(empty)), RobustDDP("median", f=1, **options)
        fit(module, {}, {"max_epochs": 3}, robust)
        found[name] = {
            "accuracy": module.accuracy(),
            "finite": all(bool(b.isfinite().all()) for b in module.buffers()),
            "identical": identical(flat(module), *module.buffers()),
            "left out": robust.reducer.times_left_out,
        }
    return found


def falsified() -> dict[str, Any]:
    """The last rank falsifies whatever it is to share: its part of the result, or its gradient where it has no part."""
    honest = exchange.start_gather

    def lying(row: torch.Tensor, mine: torch.Tensor, group: Any) -> list[Any]:
        if RANK == WORLD - 1 and mine.is_floating_point():
            mine.fill_(100.0)
        return honest(row, mine, group)

    found: dict[str, Any] = {}
    for trust in ("shard", "gather"):
        module = fresh(Net)
        with mock.patch.object(exchange, "start_gather", lying):
            fit(module, {}, {"max_epochs": 3}, RobustDDP("median", f=1, trust=trust))
        found[trust] = {"accuracy": module.accuracy(), "largest": float(flat(module).abs().max())}
    return found


def logged() -> dict[str, Any]:
    """What a logger and the progress bar get."""
    folder = Path(shared_folder())
    module = fresh(lambda: Liar("nan"))
    options = {"logger": CSVLogger(folder), "log_every_n_steps": 1}
    trainer = fit(module, {}, options, RobustDDP("median", f=1))
    header = next(folder.rglob("metrics.csv")).read_text().splitlines()[0] if RANK == 0 else ""
    return {"header": header.split(","), "bar": sorted(trainer.progress_bar_metrics)}


def resumed() -> dict[str, Any]:
    """Two epochs at once, and one after the other through a checkpoint, for rules that remember."""
    found: dict[str, Any] = {}
    for trust in ("shard", "gather"):
        for operator in ("momentum | median", "centered_clipping(tau=1.0)"):
            file = Path(shared_folder(), "half.ckpt")
            whole, first, second = fresh(Net), fresh(Net), fresh(Net)
            fit(whole, {}, {"max_epochs": 2}, RobustDDP(operator, trust=trust))
            trainer = fit(first, {}, {"max_epochs": 1}, RobustDDP(operator, trust=trust))
            trainer.save_checkpoint(file)
            state = torch.load(file, weights_only=True)
            again = pl.Trainer(
                **QUIET, accelerator="cpu", devices=WORLD, strategy=DDPStrategy(process_group_backend="gloo"),
                max_epochs=2, callbacks=[RobustDDP(operator, trust=trust)],
            )  # fmt: skip
            again.fit(second, ckpt_path=file, weights_only=True)
            forgetful = fresh(Net)
            forgetful.load_state_dict(state["state_dict"])
            found[f"{operator} / {trust}"] = {
                "exact": torch.equal(flat(whole), flat(second)),
                "went on": not torch.equal(flat(first), flat(second)),
                "identical": identical(flat(second)),
                "remembers": bool(state["callbacks"]["RobustDDP"]["memories"][0]),
            }
    return found


def other_world() -> str:
    """A memory of other ranks does not fit."""
    robust = RobustDDP("momentum | median")
    state = robust.state_dict()
    vector = torch.zeros(flat(Net()).numel())
    robust.load_state_dict(state | {"memories": [{"momentum": [vector] * (WORLD + 1)}]})
    return error_of(robust)


def unfrozen() -> dict[str, Any]:
    """Parameters that begin to train in the middle are aggregated from then on."""

    class Thawing(Net):
        def __init__(self) -> None:
            super().__init__()
            self.first.requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.first.requires_grad_(True)

    module = fresh(Thawing)
    before = module.first.weight.detach().clone()
    try:
        fit(module, {"find_unused_parameters": True}, {"max_epochs": 2}, RobustDDP("median", f=1))
    except ByzflowError as error:
        return {"refused": str(error)}
    return {"identical": identical(flat(module)), "moved": not torch.equal(before, module.first.weight)}


def layerwise() -> dict[str, Any]:
    """A rule that looks at whole gradients works where they are."""
    module = fresh(Net)
    fit(module, {}, {}, RobustDDP("layerwise(rule=nnm(f=1) | median)", trust="gather"))
    return {"identical": identical(flat(module))}


def fabric() -> dict[str, Any]:
    """The reducer in a loop of one's own: the same as under the Trainer."""
    trained = fresh(Net)
    fit(trained, {}, {"limit_train_batches": 3}, RobustDDP(CHAIN, f=1))
    reducer = RobustReducer(CHAIN, f=1)
    loop = Fabric(accelerator="cpu", devices=WORLD, strategy="ddp", callbacks=[reducer])
    loop.launch()
    module = fresh(Net)
    model, optimizer = loop.setup(module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9))
    for index, (x, y) in enumerate(trained.trainer.train_dataloader):
        if index == 3:
            break
        optimizer.zero_grad()
        loop.backward(nn.functional.cross_entropy(model(x), y))
        reducer.reduce(optimizer)
        loop.clip_gradients(model, optimizer, max_norm=1e9)
        optimizer.step()
    return {"difference": float((flat(module) - flat(trained)).abs().max()), "identical": identical(flat(module))}


def other_namespace() -> dict[str, Any]:
    """`pytorch_lightning` takes the same callback, alone and in a list."""

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(blobs(40 * WORLD), batch_size=8)

    module, robust = Module(), RobustDDP("median", f=1)
    trainer = pytorch_lightning.Trainer(
        **QUIET, accelerator="cpu", devices=WORLD, strategy="ddp", max_epochs=1, callbacks=robust
    )
    trainer.fit(module)
    return {
        "identical": identical(flat(module)),
        "steps": trainer.global_step,
        "operator": robust.reducer.audit.operator,
    }


class Second(Net):
    """Configurations that no robust reduction can be right for."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        if what == "sparse":
            self.table = nn.Embedding(4, 2, sparse=True)

    def configure_optimizers(self) -> Any:
        if self.what == "lbfgs":
            return torch.optim.LBFGS(self.parameters())
        return super().configure_optimizers()


def refused() -> dict[str, str]:
    """What each of these says, before anything has been trained."""
    return {
        "too few": error_of(RobustDDP("krum", f=1)),
        "whole rows": error_of(RobustDDP("dnc", f=1)),
        "needs more": error_of(RobustDDP("fltrust", f=1)),
        "lbfgs": error_of(RobustDDP("median"), Second("lbfgs")),
        "sparse": error_of(RobustDDP("median"), Second("sparse")),
        "two optimisers": error_of(RobustDDP("median", overlap=True), Manual()),
        "own hook": error_of(RobustDDP("median"), ddp_comm_hook=lambda state, bucket: None),
        "one device": error_of(RobustDDP("median"), strategy="auto", devices=1),
    }


def error_of(robust: RobustDDP, module: pl.LightningModule | None = None, **options: Any) -> str:
    """What stops the training before its first step."""
    module = module or Net()
    start = flat(module)
    strategy = options.pop("strategy", None) or DDPStrategy(process_group_backend="gloo", **options)
    try:
        fit(module, {}, {"strategy": strategy, "devices": options.get("devices", WORLD)}, robust)
    except ByzflowError as error:
        assert torch.equal(start, flat(module))
        return f"{type(error).__name__}: {error}"
    return "nothing"


def shared_folder() -> str:
    """One temporary folder for all ranks."""
    made = [tempfile.mkdtemp(prefix="byzflow-") if RANK == 0 else ""]
    dist.broadcast_object_list(made, 0)
    return made[0]
