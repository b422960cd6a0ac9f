"""The robust reduction of gradients for any training loop over DistributedDataParallel: Fabric's, or one's own."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import byzflow
from byzflow.errors import ByzflowError, NonFiniteRows, NotEnoughSenders, RowsError, SpecError
from byzflow.spec import parse_rule
from byzflow_lightning.audit import StepAudit
from byzflow_lightning.buffers import agree_on_buffers
from byzflow_lightning.exchange import Rule, Trust, from_all, gathered, sharded
from byzflow_lightning.overlap import Overlap
from byzflow_lightning.refusals import check_model, check_optimizers
from byzflow_lightning.slot import Slot


class RobustReducer:
    """Replaces DDP's mean over the ranks by a robust rule: one rank is one sender.

        reducer = RobustReducer("nnm | trimmed_mean", f=1)
        fabric = Fabric(strategy="ddp", devices=4, callbacks=[reducer])      # or reducer.attach(ddp_model)
        ...
        fabric.backward(loss)
        reducer.reduce(optimizer)                # on every rank, before clipping and optimizer.step()

    `attach` makes DDP leave each rank its own gradient; `reduce` then aggregates over the whole gradient of an
    optimiser, never bucket by bucket: distances between parts of gradients are not those between gradients.

    Parameters
    ----------
    operator : the aggregation, such as "median" or "nnm | trimmed_mean", or an operator.
    f : ranks that may lie or break; fills each `f` that `operator` leaves open.
    overlap : send each bucket of gradients off while the backward pass still runs. For one optimiser of all
        parameters, rules without a memory of vectors, trust="shard", and no loss scale.
    trust : "shard" (each rank aggregates its share of the coordinates and is believed) or "gather" (each rank
        gets all gradients and believes nobody; n times the memory and the bytes).

    Attributes
    ----------
    f : ranks that may lie or break, as it was declared; else, once attached, as many as the rule bears.
    audit : the `StepAudit` of the last reduction.
    sound : False if this rank's gradient must not count, whatever it is; True again after each reduction.
    weigh : whether to find each rank's weight; for column rules that takes about as long as the rule itself.
    times_left_out : rank -> how often its gradient did not count.
    times_skipped : steps for which no aggregate could be made.

    Raises
    ------
    SpecError : the operator does not read, is no aggregation, or cannot run in this way.
    NotEnoughSenders : in `attach`: too few ranks for the operator.
    """

    def __init__(
        self, operator: str | byzflow.Operator, *, f: int | None = None, overlap: bool = False, trust: Trust = "shard"
    ) -> None:
        self.operator = parse_rule(operator, f)
        if trust not in ("shard", "gather"):
            raise SpecError(f"trust must be 'shard' or 'gather', got {trust!r}")
        if self.operator.vector_names and (overlap or self.operator.kind == "rows"):
            what = "overlap=True changes the order of coordinates" if overlap else "it looks at parameters one by one"
            raise SpecError(f"{self.operator} remembers vectors, and {what}: leave the memory or that out")
        if overlap and trust == "gather":
            raise SpecError("overlap=True needs trust='shard'")
        self.f = self.operator.made_for if f is None else f
        self.overlap, self.trust = overlap, trust
        self.audit = StepAudit(str(self.operator))
        self.sound = self.weigh = True
        self.times_left_out: dict[int, int] = {}
        self.times_skipped = 0
        self._model: DistributedDataParallel | None = None
        self._remembers = False
        self._overlap: Overlap | None = None
        self._slots: dict[int, Slot] = {}  # by optimiser
        self._waiting: list[Any] = []  # states of a checkpoint, for the optimisers to come

    @property
    def model(self) -> DistributedDataParallel:
        """The model whose gradients are reduced."""
        if self._model is None:
            raise ByzflowError("the reducer has no model yet: call attach(ddp_model), or give it to Fabric's callbacks")
        return self._model

    def attach(self, model: DistributedDataParallel) -> None:
        """Take over from DDP's own reduction, after a trial of the operator. To be called on all ranks."""
        check_model(model)
        self._try(model)
        if self.f is None:
            n = model.process_group.size()
            self.f = max(0, math.ceil((self.operator.bounds(n, 0, None).breakdown or 0) * n) - 1)
        self._overlap = Overlap(self.operator, model.process_group) if self.overlap else None
        # without annotations: torch reads them, and not as strings
        model.register_comm_hook(None, lambda _, bucket: self._hook(bucket))
        model.broadcast_buffers = False  # of rank 0; `reduce` takes the median
        self._model, self._slots = model, {}

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Fabric's hook: attach to the model that was set up."""
        model = getattr(module, "_forward_module", module)
        if not isinstance(model, DistributedDataParallel):
            raise SpecError(f"robust reduction needs Fabric(strategy='ddp'), got {type(model).__name__} as the model")
        if getattr(fabric.strategy.precision, "scaler", None) is not None:
            raise SpecError("with Fabric, robust reduction knows no loss scale: use precision='bf16-mixed'")
        self.attach(model)

    def slot(self, optimizer: Optimizer) -> Slot:
        """The room for an optimiser's gradient and what the rule remembers of it."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Fabric's and Lightning's wrappers
        if id(optimizer) not in self._slots:
            check_optimizers([optimizer])
            self._slots[id(optimizer)] = Slot(optimizer, self.operator, self.trust, self.model.process_group)
            if self._waiting:
                self._slots[id(optimizer)].load(self._waiting.pop(0))
        return self._slots[id(optimizer)]

    def reduce(self, optimizer: Optimizer, scale: float = 1.0) -> StepAudit:
        """Replace the gradients of an optimiser's parameters by the aggregate. To be called on all ranks.

        `scale` is a loss scale that is still in the gradients. If no aggregate can be made, such as when every
        rank has NaN, the gradients become None, so that the step changes nothing.
        """
        if self._overlap is None:
            self.audit = self._reduced(self.slot(optimizer), scale)
        else:
            self.audit = self._overlap.audit
        self.sound = True
        for rank in self.audit.rejected:
            self.times_left_out[rank] = self.times_left_out.get(rank, 0) + 1
        if self.audit.skipped:
            self.times_skipped += 1
            optimizer.zero_grad(set_to_none=True)  # optimisers leave such parameters alone
        agree_on_buffers(self.model.module, self.model.process_group)
        return self.audit

    @property
    def _rule(self) -> Rule:
        """With the audit where it is wanted, or where the rule's memory comes with it."""
        explains = self.weigh or self._remembers
        return self.operator.explain if explains else partial(self.operator.run, nonfinite="reject")

    def _reduced(self, slot: Slot, scale: float) -> StepAudit:
        start, group = time.perf_counter(), self.model.process_group
        slot.update()
        present = from_all(slot.present(self.sound), group).cpu().bool()  # (n, parameters)
        if not bool(present.any()):
            return StepAudit(str(self.operator), skipped="no rank has a gradient")
        absent = frozenset((~present.any(1)).nonzero().flatten().tolist())
        slot.fill(scale, absent=group.rank() in absent)
        try:
            if self.trust == "shard":
                result = sharded(self._rule, slot.row, slot.room, slot.d, group, slot.state)
            else:
                leaves = slot.leaves if self.operator.kind == "rows" else [slot.d]
                result = gathered(self._rule, slot.row, leaves, group, slot.state)
        except (NotEnoughSenders, NonFiniteRows) as problem:
            return StepAudit.failed(self.operator, problem, from_all(slot.finite(), group), absent)
        slot.state = result.state
        slot.spread(present.any(0).tolist(), scale)
        return StepAudit.of(result, absent, time.perf_counter() - start)

    def state_dict(self) -> dict[str, Any]:
        """What the rule remembers, whole, on rank 0; tensors, lists and numbers. To be called on all ranks."""
        return {
            "operator": str(self.operator),
            "memories": [slot.save() for slot in self._slots.values()] or self._waiting,
            "times_left_out": dict(self.times_left_out),
            "times_skipped": self.times_skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, before the first step. SpecError if it is another rule's."""
        if state["operator"] != str(self.operator):
            raise SpecError(f"the checkpoint is of {state['operator']}, not of {self.operator}")
        self._waiting = list(state["memories"])
        self.times_left_out = dict(state["times_left_out"])
        self.times_skipped = state["times_skipped"]

    def _hook(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """DDP's communication hook: exchange, or leave each rank its own gradient."""
        buffer = bucket.buffer()
        if self._overlap is not None:
            if not self.sound:
                buffer.fill_(torch.nan)
            self._overlap.rule = self._rule
            return self._overlap.hook(bucket)
        future: torch.futures.Future[Tensor] = torch.futures.Future(
            devices=[buffer.device] if buffer.device.type == "cuda" else None
        )
        future.set_result(buffer)
        return future

    def _try(self, model: DistributedDataParallel) -> None:
        """One reduction of made-up gradients: whatever would fail in the first step fails here, on all ranks."""
        group = model.process_group
        n = group.size()
        try:
            self.operator.check(n)
        except NotEnoughSenders as error:
            why = f"{error.why}: each rank is one; start more processes, or lower f"
            raise NotEnoughSenders(error.operator, error.needed, error.given, why) from None
        first = next(iter(model.parameters()))
        row = torch.linspace(1, 2, 8 * n, device=first.device) * (group.rank() + 1)
        try:
            if self.trust == "shard":
                result = sharded(self.operator.explain, row, row.clone(), len(row), group, {})
            else:
                result = gathered(self.operator.explain, row, [8 * n], group, {})
        except RowsError as error:
            raise SpecError(f"{error}; trust='gather' has whole gradients on every rank") from None
        except ByzflowError as error:
            raise SpecError(f"{self.operator} cannot reduce gradients: {error}") from None
        self._remembers = bool(result.state)
