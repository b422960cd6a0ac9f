"""n workers, f of them Byzantine, in one process: the experiment of the literature on an unchanged LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from byzflow.engine.report import Aggregation
from byzflow.errors import SpecError
from byzflow.federation.training import loss_of
from byzflow.operators import Attack, Operator
from byzflow_lightning import batches
from byzflow_lightning.callback import Callback
from byzflow_lightning.contest import Contest
from byzflow_lightning.momenta import Momenta
from byzflow_lightning.rank_states import copied, of_all_ranks
from byzflow_lightning.worker_refusals import check_training, read_attack, read_rule
from byzflow_lightning.worker_step import Step, gradients, loss_with, trainable, unnoticed


class VirtualWorkers(Callback):
    """Train as n workers would of whom f lie; everything after their aggregate is Lightning's own.

        Trainer(callbacks=[VirtualWorkers(n=10, f=3, attack="alie", operator="nnm | trimmed_mean")])

    In each training step the batch is shared out; each worker's gradient goes into its momentum, the means of the
    honest workers are attacked, and the aggregate becomes the gradient of the step, which Lightning accumulates,
    unscales, clips and applies. Workers take turns, so the graph of one is alive at a time; n momenta are kept.

    Workers 0 to f - 1 are Byzantine as soon as there is an attack or poisoned data, else all are honest. What their
    forwards do to buffers (BatchNorm's statistics) and what they log is not kept. The step's loss is the mean over the
    honest workers; anything else that `training_step` returns is that of the last. A worker whose `training_step`
    returns None, or whose gradient holds NaN or Inf, sends NaN: it is rejected and named, and its momentum waits.
    Under 16-mixed an honest NaN or Inf means that the loss scale is too large: the step is skipped, as always.

    Under DDP each rank has n workers of its own, and their aggregate is what the rank contributes: to DDP's mean, or
    to the rule of a `RobustDDP` beside it. Every rank's state goes into the checkpoint.

    Parameters
    ----------
    n : workers, > f. A batch that n does not divide is cut into parts whose sizes differ by one.
    f : Byzantine workers, >= 0; fills each `f` that the specs leave open.
    attack : what they send given the honest workers' momenta, a spec such as "alie" or an operator.
    operator : the aggregation, a spec such as "nnm | trimmed_mean" or an operator.
    momentum : of each worker, m = momentum m + (1 - momentum) gradient from m = 0; in [0, 1), 0 for none.
    poison : batch -> batch, for Byzantine workers. With no attack they send the gradient of it honestly; attacks with
        knowledge "own" or "colluders" are made from it.
    split : (batch, n) -> n batches; by default along the first dimension (`batches.split`). `split_loaders` if the
        batch holds one for each worker already, from n loaders.

    With mean, no attack and no momentum, training equals ordinary training as far as n divides the batch, its loss is
    a mean over samples, and no layer mixes samples as BatchNorm does.

    Attributes
    ----------
    aggregation : the last `Aggregation`, `rejected` and `weights` by worker. Weights are found every
        `log_every_n_steps` steps, and logged with the time as `virtual_workers/...`; the progress bar has `rejected`
        and `byzantine_weight`, the sum of the liars' weights.

    Raises
    ------
    SpecError, NotEnoughSenders : at once, if a spec does not read or is not valid for n and f.
    SpecError : before training starts, for manual optimisation, LBFGS, sharded models, or a checkpoint of another
        set-up; in a step, for a batch that cannot be split.
    """

    def __init__(
        self,
        n: int,
        f: int = 0,
        attack: str | Operator | None = None,
        operator: str | Operator = "mean",
        momentum: float = 0.9,
        poison: Callable[[Any], Any] | None = None,
        split: Callable[[Any, int], Sequence[Any]] = batches.split,
    ) -> None:
        if not 0 <= f < n:
            raise SpecError(f"VirtualWorkers needs 0 <= f < n, got n={n}, f={f}")
        if not 0 <= momentum < 1:
            raise SpecError(f"momentum must be at least 0 and below 1, got {momentum}")
        self.n, self.f, self.beta, self.poison, self.split = n, f, momentum, poison, split
        self.operator = read_rule(operator, n, f)
        self.attack = read_attack(attack, n - f, f) if attack is not None and f else None
        liars = f if self.attack is not None or poison is not None else 0
        self.honest = range(liars, n)
        # Gradients of liars matter to attacks that start from them, and where there is no other attack.
        self.computing = range(n) if self.attack is None or _looks_at_own(self.attack, poison) else self.honest
        self._begin()
        self._restore: Callable[[], None] | None = None
        self._stepped = False
        self._device = torch.device("cpu")

    def _begin(self) -> None:
        self.aggregation: Aggregation | None = None
        self._momenta = Momenta(len(self.computing), self.beta)
        self._contest = Contest(self.operator, self.attack)
        self._loaded: dict[str, Any] | None = None

    # Lightning's hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the last run, as Lightning forgets its optimisers; a checkpoint is loaded after this."""
        if stage == "fit":
            self._begin()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be right, and stand in for `training_step`."""
        check_training(trainer, pl_module)
        self._device = pl_module.device
        self._resume(trainer.global_rank, trainer.world_size)
        step: Step = pl_module.training_step
        own = vars(pl_module).get("training_step")  # a compiled one, perhaps

        def restore() -> None:
            vars(pl_module).pop("training_step", None)
            if own is not None:
                pl_module.training_step = own

        @wraps(step)
        def together(batch: Any, *rest: Any) -> Any:
            return self._step(trainer, pl_module, step, batch, rest)

        self._restore = restore
        pl_module.training_step = together

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A new step."""
        self._stepped = False

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module its `training_step` back."""
        if self._restore is not None:
            self._restore()
            self._restore = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same after an error, when Lightning calls no teardown."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers: the momenta and what the operators remember, by rank. Every rank must call it."""
        zero = {name: torch.zeros_like(rows[0]) for name, rows in self._momenta.rows.items()}
        mine = {"momenta": self._momenta.rows if self.beta else {}, **self._contest.save(zero)}
        ranks = of_all_ranks(mine, self._device)
        return {"n": self.n, "momentum": self.beta, "ranks": [copied(each, torch.device("cpu")) for each in ranks]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, when training starts."""
        self._loaded = state_dict

    # One step

    def _step(self, trainer: Any, module: Any, step: Step, batch: Any, rest: Sequence[Any]) -> Any:
        """A training step of all workers: their loss, with the aggregate for gradients."""
        if self._stepped:
            raise SpecError("VirtualWorkers gives one gradient a step: this optimizer calls its closure again")
        self._stepped = True
        parts = list(self.split(batch, self.n))
        if len(parts) != self.n:
            raise SpecError(f"split must give a batch for each of n={self.n} workers, got {len(parts)}")
        parameters, scaler = trainable(module), getattr(trainer.precision_plugin, "scaler", None)
        if self._momenta.fit(parameters):
            self._contest.state = {}  # its vectors have other coordinates
        losses: list[Tensor] = []
        output: Any = None
        used: set[str] = set()
        for place, worker in enumerate(self.computing):
            lies = worker not in self.honest
            part = self.poison(parts[worker]) if lies and self.poison is not None else parts[worker]
            with unnoticed(module) if lies else nullcontext():
                torch.clear_autocast_cache()  # what it holds belongs to the graph of the worker before
                answer = step(part, *rest)
                loss = loss_of(answer)
                found = None if loss is None else gradients(loss, parameters, scaler)
            self._momenta.add(place, found)
            if found is not None:
                used |= {name for name, each in found.items() if each is not None}
            if loss is not None and not lies:
                losses.append(loss.detach())
                output = answer
            del answer, loss, found
        if not losses:
            return None
        if scaler is not None and any(self.computing[place] in self.honest for place in self._momenta.broken):
            value = {name: torch.full_like(each, torch.nan) for name, each in parameters.items()}
        else:
            rows = {worker: self._momenta.row(place) for place, worker in enumerate(self.computing)}
            own = [row for worker, row in rows.items() if worker not in self.honest]
            with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                honest = [rows[worker] for worker in self.honest]
                self.aggregation = self._contest.aggregate(own, honest, _logs(trainer))
            value = self.aggregation.value
            self._tell(module, self.aggregation, _logs(trainer))
        names = [name for name in parameters if name in used]
        combined = loss_with(
            torch.stack(losses).mean(), [value[name] for name in names], [parameters[name] for name in names]
        )
        return {**output, "loss": combined} if isinstance(output, Mapping) else combined

    def _tell(self, module: Any, aggregation: Aggregation, audit: bool) -> None:
        """For loggers and the progress bar: who was rejected, and in steps that are logged all else."""
        module.log("rejected", float(len(aggregation.rejected)), prog_bar=True)
        if not audit:
            return
        told = {"aggregation_ms": self._contest.milliseconds}
        if aggregation.weights is not None:
            weights = aggregation.weights.tolist()
            told |= {f"weight/{worker}": weight for worker, weight in enumerate(weights)}
            module.log("byzantine_weight", sum(weights[: self.honest.start]), prog_bar=True)
        module.log_dict({f"virtual_workers/{name}": number for name, number in told.items()})

    def _resume(self, rank: int, ranks: int) -> None:
        """This rank's part of a checkpoint."""
        if self._loaded is None:
            return
        saved = (self._loaded["n"], self._loaded["momentum"], len(self._loaded["ranks"]))
        if saved != (self.n, self.beta, ranks):
            raise SpecError(
                "the checkpoint is of n={}, momentum={} on {} ranks, ".format(*saved)
                + f"this run has n={self.n}, momentum={self.beta} on {ranks}: resume with the same"
            )
        state = copied(self._loaded["ranks"][rank], self._device)
        momenta: dict[str, Tensor] = state.pop("momenta")
        if any(len(rows) != len(self.computing) for rows in momenta.values()):
            raise SpecError("the checkpoint's momenta are of another attack or poison: resume with the same")
        self._contest.load(state)
        self._momenta.rows, self._loaded = momenta, None


def _logs(trainer: Any) -> bool:
    """Whether loggers are told of this step."""
    every: int = trainer.log_every_n_steps
    return every > 0 and (trainer.global_step + 1) % every == 0


def split_loaders(batch: Any, n: int) -> list[Any]:
    """For `split`: the batch holds one for each worker already, as it comes from a list or mapping of n loaders."""
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


def _looks_at_own(attack: Attack, poison: Any) -> bool:
    """Whether the attack may start from the attackers' own gradients."""
    return poison is not None or attack.knowledge != "omniscient" or type(attack).run is not Attack.run
