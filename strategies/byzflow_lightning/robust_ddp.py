"""Robust data-parallel training with Lightning's Trainer."""

from __future__ import annotations

from functools import wraps
from logging import getLogger
from typing import Any

import byzflow
from byzflow.errors import SpecError
from byzflow_lightning import refusals, scaling
from byzflow_lightning.audit import StepAudit
from byzflow_lightning.callback import Callback
from byzflow_lightning.exchange import Trust
from byzflow_lightning.robust_reducer import RobustReducer

log = getLogger("byzflow_lightning")


class RobustDDP(Callback):
    """Trains on though ranks lie or break: a robust rule in the place of DDP's mean over the ranks.

        Trainer(strategy="ddp", devices=8, callbacks=[RobustDDP("nnm | trimmed_mean", f=2)])

    One rank is one sender. After the backward pass, and before clipping and the step, each optimiser's whole gradient
    is aggregated; a rank whose gradient holds NaN or Inf, or which has none, is left out, named in the log, and
    uses up one of f. If no aggregate can be made, the step changes nothing. Whatever is configured that would
    reduce gradients past the rule, or let replicas part, is refused when training starts.

    Logged as `robust/rejected` (ranks left out, also in the progress bar), `robust/weight/<rank>` and
    `robust/seconds`; with several optimisers `robust/<index>/...`.

    Parameters
    ----------
    operator : the aggregation, such as "median" or "nnm | trimmed_mean", or an operator.
    f : ranks that may lie or break; fills each `f` that `operator` leaves open.
    overlap : send each bucket of gradients off while the backward pass still runs. For automatic optimisation with
        one optimiser, rules without a memory of vectors, trust="shard", and no 16-bit loss scale.
    trust : "shard" (each rank aggregates its share of the coordinates and is believed) or "gather" (each rank
        gets all gradients and believes nobody; n times the memory and the bytes).

    Attributes
    ----------
    reducer : the `RobustReducer` at work, with `audit`, `times_left_out` and `times_skipped`.

    Raises
    ------
    SpecError : the operator does not read, is no aggregation, or cannot run in this way; or, when training starts,
        strategy, model, optimisers or options do not go with it.
    NotEnoughSenders : when training starts: too few ranks for the operator.
    """

    def __init__(
        self,
        operator: str | byzflow.Operator,
        f: int | None = None,
        overlap: bool = False,
        trust: Trust = "shard",
    ) -> None:
        super().__init__()
        self.reducer = RobustReducer(operator, f=f, overlap=overlap, trust=trust)
        self._done: set[int] = set()  # optimisers whose gradients were reduced before they were clipped by hand
        self._told: dict[int, str] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a strategy that is not DDP, before it starts to work."""
        if stage == "fit":
            refusals.check_strategy(trainer.strategy)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be right, and take over from DDP's reduction."""
        refusals.check_optimizers(trainer.optimizers)
        if self.reducer.overlap:
            self._check_overlap(trainer, pl_module)
        self.reducer.attach(trainer.strategy.model)
        for optimizer in trainer.optimizers:
            self.reducer.slot(optimizer)
        pl_module.__dict__.pop("clip_gradients", None)  # of a fit that was interrupted
        if not pl_module.automatic_optimization:
            self._reduce_before_clipping(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Find weights where they will be logged."""
        self.reducer.weigh = (trainer.global_step + 1) % max(1, trainer.log_every_n_steps) == 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Replace the optimiser's gradients by the aggregate."""
        if id(optimizer) in self._done:
            self._done.discard(id(optimizer))
            return
        self._reduce(trainer, pl_module, optimizer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """A NaN loss, such as the mean over an empty batch, may well have a gradient of zeros: it must not count."""
        if bool(loss.isnan().any()):
            self.reducer.sound = False

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """New gradients: none of them has been reduced."""
        self._done.clear()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Say what happened; give the module its own clipping back."""
        pl_module.__dict__.pop("clip_gradients", None)
        reducer = self.reducer
        if trainer.is_global_zero and (reducer.times_left_out or reducer.times_skipped):
            times = ", ".join(f"rank {rank}: {count}" for rank, count in sorted(reducer.times_left_out.items()))
            log.warning("RobustDDP: steps skipped: %d; left out: %s", reducer.times_skipped, times or "nobody")

    def state_dict(self) -> dict[str, Any]:
        """What the rule remembers; tensors, lists and numbers. Called on all ranks, whole on rank 0."""
        return self.reducer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.reducer.load_state_dict(state_dict)

    def _reduce(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaling.scale_in(scaler, optimizer)
        audit = self.reducer.reduce(optimizer, scale)
        if scaler is not None:
            too_many = len(audit.rejected) > (self.reducer.f or 0)
            scaling.settle(scaler, optimizer, skip=bool(audit.skipped) or too_many)
        self._report(trainer, pl_module, optimizer, audit)

    def _report(self, trainer: Any, pl_module: Any, optimizer: Any, audit: StepAudit) -> None:
        index = next(k for k, each in enumerate(trainer.optimizers) if each is optimizer)
        prefix = "robust/" if len(trainer.optimizers) == 1 else f"robust/{index}/"
        values = {f"{prefix}weight/{rank}": weight for rank, weight in enumerate(audit.weights)}
        values[f"{prefix}seconds"] = audit.seconds
        pl_module.log(f"{prefix}rejected", float(len(audit.rejected)), prog_bar=True, rank_zero_only=True)
        pl_module.log_dict(values, rank_zero_only=True)
        troubled = bool(audit.rejected or audit.skipped)
        if trainer.is_global_zero and troubled and self._told.get(index) != (line := audit.line()):
            self._told[index] = line  # not once a step while a rank stays broken
            log.warning("RobustDDP: step %d: %s", trainer.global_step, line)

    def _check_overlap(self, trainer: Any, pl_module: Any) -> None:
        held = {id(p) for each in trainer.optimizers for group in each.param_groups for p in group["params"]}
        trained = {id(p) for p in trainer.strategy.model.parameters() if p.requires_grad}
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for wrong, what in (
            (not pl_module.automatic_optimization, "automatic optimisation"),
            (len(trainer.optimizers) != 1, "one optimiser"),
            (held != trained, "an optimiser that holds all parameters that train, and no others"),
            (scaler is not None, "precision without a loss scale, such as 'bf16-mixed'"),
        ):
            if wrong:
                raise SpecError(f"overlap=True needs {what}: leave it out")

    def _reduce_before_clipping(self, pl_module: Any) -> None:
        """Under manual optimisation the module clips before the step, and must clip the aggregate."""
        clip = pl_module.clip_gradients

        @wraps(clip)
        def clipped(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            plain = getattr(optimizer, "optimizer", optimizer)
            self._reduce(pl_module.trainer, pl_module, plain)
            self._done.add(id(plain))
            return clip(optimizer, *args, **kwargs)

        pl_module.clip_gradients = clipped
