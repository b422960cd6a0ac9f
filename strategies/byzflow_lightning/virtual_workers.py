"""n workers, f of them Byzantine, in one process: the experiment of the literature on an unchanged LightningModule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

import byzflow
from byzflow.engine.extras import PerRow
from byzflow.engine.report import Aggregation
from byzflow.errors import ByzflowError, SpecError
from byzflow.operators import Attack, Operator
from byzflow_lightning import batches
from byzflow_lightning.namespaces import Callback
from byzflow_lightning.rank_states import copied, of_all_ranks
from byzflow_lightning.worker_step import (
    Gradients,
    Step,
    finite,
    gradients,
    loss_of,
    loss_with,
    row_dtype,
    trainable,
    unnoticed,
)

STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")  # where each process holds the whole model


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
    aggregation : the last `Aggregation`, its `weights` and `rejected` by worker; also logged as `virtual_workers/...`.

    Raises
    ------
    SpecError, NotEnoughSenders : at once, if a spec does not read or is not valid for n and f.
    ByzflowError : before training starts, for manual optimisation, LBFGS, sharded models, or a checkpoint of another
        set-up; in a step, for a batch that cannot be split.
    """

    def __init__(
        self,
        n: int,
        f: int = 0,
        attack: str | Attack | None = None,
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
        self.operator = byzflow.parse(operator, f=f)
        if isinstance(self.operator, Attack) or self.operator.out_rows(n) != 1:
            raise SpecError(f"{self.operator} is no aggregation; end the spec with a rule, such as '| trimmed_mean'")
        self.operator.check(n)
        self.attack = None if attack is None or not f else _read_attack(attack, f, n - f)
        liars = f if self.attack is not None or poison is not None else 0
        self.honest = range(liars, n)
        # Gradients of liars matter to attacks that start from them, and where there is no other attack.
        self.computing = range(n) if self.attack is None or _looks_at_own(self.attack, poison) else self.honest
        self.aggregation: Aggregation | None = None
        self._momenta: dict[str, Tensor] = {}  # (computing workers, ...) by name
        self._state: dict[str, dict[str, Any]] = {}
        self._loaded: dict[str, Any] | None = None
        self._restore: Callable[[], None] | None = None
        self._stepped = False
        self._device = torch.device("cpu")

    # Lightning's hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the last run, as Lightning forgets its optimisers; a checkpoint is loaded after this."""
        if stage == "fit":
            self.aggregation, self._loaded = None, None
            self._momenta, self._state = {}, {"operator": {}, "attack": {}}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be right, and stand in for `training_step`."""
        refuse(trainer, pl_module)
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
        zero = {name: torch.zeros_like(rows[0]) for name, rows in self._momenta.items()}
        mine: dict[str, Any] = {"momenta": self._momenta if self.beta else {}}
        for home, state in self._state.items():
            mine[home] = {
                name: [zero if each is None else each for each in value] if isinstance(value, PerRow) else value
                for name, value in state.items()
            }
        ranks = of_all_ranks(mine, self._device)
        return {"n": self.n, "ranks": [copied(each, torch.device("cpu")) for each in ranks]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, when training starts."""
        self._loaded = state_dict

    # One step

    def _step(self, trainer: Any, module: Any, step: Step, batch: Any, rest: Sequence[Any]) -> Any:
        """A training step of all workers: their loss, with the aggregate for gradients."""
        if self._stepped:
            raise ByzflowError("VirtualWorkers needs an optimizer that calls its closure once a step; this one repeats it")
        self._stepped = True
        parts = list(self.split(batch, self.n))
        if len(parts) != self.n:
            raise ByzflowError(f"split must give a batch for each of n={self.n} workers, got {len(parts)}")
        parameters, scaler = trainable(module), getattr(trainer.precision_plugin, "scaler", None)
        self._make_room(parameters)
        losses: list[Tensor] = []
        output: Any = None
        used: set[str] = set()
        broken: set[int] = set()
        for place, worker in enumerate(self.computing):
            lies = worker not in self.honest
            part = self.poison(parts[worker]) if lies and self.poison is not None else parts[worker]
            with unnoticed(module) if lies else nullcontext():
                torch.clear_autocast_cache()  # what it holds belongs to the graph of the worker before
                answer = step(part, *rest)
                loss = loss_of(answer)
                found = None if loss is None else gradients(loss, parameters, scaler)
            if found is None or not finite(found):
                broken.add(worker)
            else:
                self._remember(place, found)
            if found is not None:
                used |= {name for name, each in found.items() if each is not None}
            if loss is not None and not lies:
                losses.append(loss.detach())
                output = answer
            del answer, loss, found
        if not losses:
            return None
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            value = self._aggregated(broken)
        if scaler is not None and not broken.isdisjoint(self.honest):
            value = {name: torch.full_like(each, torch.nan) for name, each in value.items()}
        names = [name for name in parameters if name in used]
        self._tell(module)
        combined = loss_with(
            torch.stack(losses).mean(), [value[name] for name in names], [parameters[name] for name in names]
        )
        return {**output, "loss": combined} if isinstance(output, dict) else combined

    def _make_room(self, parameters: dict[str, nn.Parameter]) -> None:
        """A momentum of each worker for each parameter; one that is frozen or thawed meanwhile starts anew."""
        if self._momenta.keys() == parameters.keys():
            return
        old, count = self._momenta, len(self.computing)
        self._momenta = {
            name: old[name]
            if name in old
            else torch.zeros((count, *each.shape), dtype=row_dtype(each), device=each.device)
            for name, each in parameters.items()
        }
        if old:
            self._state = {"operator": {}, "attack": {}}  # its vectors have other coordinates

    def _remember(self, place: int, found: Gradients) -> None:
        for name, rows in self._momenta.items():
            row, gradient = rows[place], found[name]
            row.mul_(self.beta) if self.beta else row.zero_()
            if gradient is not None:
                row.add_(gradient, alpha=1 - self.beta)

    def _aggregated(self, broken: set[int]) -> dict[str, Tensor]:
        """The attack on the honest workers' rows, then the rule on all."""
        start = time.perf_counter()
        rows: dict[int, dict[str, Tensor]] = {
            worker: {
                name: torch.full_like(rows[place], torch.nan) if worker in broken else rows[place]
                for name, rows in self._momenta.items()
            }
            for place, worker in enumerate(self.computing)
        }
        honest = [rows[worker] for worker in self.honest]
        sent = [rows[worker] for worker in range(self.honest.start) if worker in rows]
        if self.attack is not None:
            own = {"own": sent} if sent else {}
            attack = self.attack.explain(honest, **own, **self._state["attack"])
            sent, self._state["attack"] = list(attack.value), dict(attack.state)
        self.aggregation = self.operator.explain([*sent, *honest], **self._state["operator"])
        self._state["operator"] = dict(self.aggregation.state)
        self._milliseconds = 1000 * (time.perf_counter() - start)
        value: dict[str, Tensor] = self.aggregation.value
        return value

    def _tell(self, module: Any) -> None:
        """The audit, for loggers and the progress bar."""
        assert self.aggregation is not None
        told = {"rejected": float(len(self.aggregation.rejected)), "aggregation_ms": self._milliseconds}
        weights = self.aggregation.weights
        if weights is not None:
            told |= {f"weight/{worker}": weight for worker, weight in enumerate(weights.tolist())}
            module.log("byzantine_weight", float(weights[: self.honest.start].sum()), prog_bar=True)
        module.log_dict({f"virtual_workers/{name}": number for name, number in told.items()})

    def _resume(self, rank: int, ranks: int) -> None:
        """This rank's part of a checkpoint."""
        if self._loaded is None:
            return
        if (self._loaded["n"], len(self._loaded["ranks"])) != (self.n, ranks):
            raise ByzflowError(
                f"the checkpoint is of n={self._loaded['n']} virtual workers on {len(self._loaded['ranks'])} ranks, "
                f"this run has n={self.n} on {ranks}: resume with the same"
            )
        state = copied(self._loaded["ranks"][rank], self._device)
        for home, operator in (("operator", self.operator), ("attack", self.attack)):
            if unknown := state[home].keys() - (operator.accepts if operator is not None else set()):
                raise ByzflowError(f"the checkpoint holds {', '.join(sorted(unknown))}, unknown to {home} {operator}")
        momenta: dict[str, Tensor] = state.pop("momenta")
        if any(len(rows) != len(self.computing) for rows in momenta.values()) or bool(momenta) != bool(self.beta):
            raise ByzflowError("the checkpoint's momenta are of another attack, poison or momentum: resume with the same")
        self._momenta, self._state, self._loaded = momenta, state, None


def split_loaders(batch: Any, n: int) -> list[Any]:
    """For `split`: the batch holds one for each worker already, as it comes from a list or mapping of n loaders."""
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


def refuse(trainer: Any, module: Any) -> None:
    """Raise ByzflowError for a training that virtual workers would get wrong."""
    if not module.automatic_optimization:
        raise ByzflowError("VirtualWorkers needs automatic optimization; this module's is manual")
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise ByzflowError("VirtualWorkers cannot use LBFGS, which computes several gradients a step: take SGD or Adam")
    strategy = type(trainer.strategy).__name__
    if strategy not in STRATEGIES:
        raise ByzflowError(f"VirtualWorkers runs on one device or under DDP, not under {strategy}")


def _read_attack(spec: str | Operator, f: int, honest: int) -> Attack:
    attack = byzflow.parse(spec, f=f)
    if not isinstance(attack, Attack):
        raise SpecError(f"{attack} is not an attack; `byzflow list attacks` shows them")
    if attack.f != f:
        raise SpecError(f"{attack} is made for f={attack.f} attackers, VirtualWorkers has f={f}")
    attack.check(honest)
    return attack


def _looks_at_own(attack: Attack, poison: Any) -> bool:
    """Whether the attack may start from the attackers' own gradients."""
    return poison is not None or attack.knowledge != "omniscient" or type(attack).run is not Attack.run
