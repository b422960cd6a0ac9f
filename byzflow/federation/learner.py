"""What one node does alone: batches, gradients, half steps, local training, evaluation; and all of its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from byzflow.errors import DataError, ModelError, SpecError
from byzflow.federation.batches import batches_of
from byzflow.federation.evaluation import evaluate
from byzflow.federation.optimizer import OptimizerStep
from byzflow.federation.randomness import random_numbers, seed_of
from byzflow.federation.training import Loss, batch_loss, draws_random_numbers, is_lightning, make_optimizer
from byzflow.federation.vector import Buffers, Integers, ModelVector, is_finite


@dataclass(frozen=True, eq=False)
class Trained:
    """What local training gave: the (n,) update, the samples it saw, and numbers such as the mean loss."""

    update: Tensor
    samples: int
    metrics: dict[str, float]


class Learner:
    """A model on its own data, as one vector of n numbers.

        learner = Learner(module, (x, y), lr=0.1, momentum=0.9)
        y = learner.half_step()          # gossip: send y, aggregate, learner.apply(aggregate)
        g = learner.gradient()           # parameter server: send g, learner.step(aggregate)
        trained = learner.train(20)      # federated averaging: send trained.update

    Two learners with equal models, data and seed stay equal, bit by bit. No method draws from global random numbers:
    a model that does (dropout, or a module that is not torch's own) gets its own for each step, one thread at a time.

    A batch whose loss or gradient is not finite is no step: model, momenta and buffers stay, and `skipped` counts it.
    Steps out of the dtype's range are none either: the model is then where `half_step` or `train` began.

    Parameters
    ----------
    module : an nn.Module, or a LightningModule: its `training_step` gives the loss, `configure_optimizers` (one
        optimiser, no schedule) the optimiser of `train`.
    data : (x, y), two tensors (samples, ...), or a DataLoader, or anything that can be iterated again and again.
    loss : (scores, y) -> mean loss; cross entropy by default.
    batch_size : samples of a batch from two tensors; a loader has its own.
    lr, momentum : of all steps, see `OptimizerStep`.
    weight_decay : adds weight_decay * x to the gradient of `half_step` and `train`, frozen parameters excepted.
    seed : of the order of the batches, and of the model's own random numbers.
    local_steps : steps of `train()`.
    prox_mu : FedProx: adds prox_mu * (x - x at the start of `train`) to its gradients.
    optimizer : parameters -> torch optimiser, a new one for each call of `train`, instead of `OptimizerStep`; it has
        its own lr, momentum and weight decay.
    batch_attack : batch -> batch, what a poisoned node trains on instead, such as flipped labels.
    buffers, integers : policies of `ModelVector`.

    Raises
    ------
    SpecError : a number out of its range. ModelError, DataError : a model or data that cannot be trained.
    """

    def __init__(
        self,
        module: nn.Module,
        data: tuple[Tensor, Tensor] | Iterable[Any],
        *,
        loss: Loss | None = None,
        batch_size: int = 64,
        lr: float = 0.05,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
        local_steps: int = 1,
        prox_mu: float = 0.0,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        batch_attack: Callable[[Any], Any] | None = None,
        buffers: Buffers = "local",
        integers: Integers = "local",
    ) -> None:
        for name, value in (("weight_decay", weight_decay), ("prox_mu", prox_mu)):
            if not 0 <= value < math.inf:
                raise SpecError(f"{name} must be a finite number >= 0, got {value!r}")
        if local_steps < 1:
            raise SpecError(f"local_steps must be an int >= 1, got {local_steps!r}")
        self.model = ModelVector(module, buffers=buffers, integers=integers)
        if not bool(self.model.trainable.any()):
            raise ModelError(f"all parameters of {type(module).__name__} are frozen: there is nothing to learn")
        self.module, self.criterion, self.seed = module, loss, seed
        self.batches = batches_of(data, batch_size, seed)
        self.optimizer_step = OptimizerStep(lr, momentum)
        self.weight_decay, self.prox_mu, self.local_steps = weight_decay, prox_mu, local_steps
        self.make_optimizer, self.batch_attack = optimizer, batch_attack
        self.mean: Tensor | None = None
        """(n,): the momentum of `half_step`; None before the first."""
        self.velocity: Tensor | None = None
        """(n,): the momentum of `step`; None before the first."""
        self.steps = self.skipped = 0
        self.last_loss = math.nan
        self.logged: dict[str, float] = {}
        foreign_loss = loss is not None and not str(getattr(loss, "__module__", "")).startswith("torch.nn.")
        self._draws = foreign_loss or draws_random_numbers(module)
        self._everything_learns = bool(self.model.trainable.all())

    def batch(self) -> Any:
        """The next batch of this node, after `batch_attack`."""
        batch = self.batches.next()
        if self.batch_attack is None:
            return batch
        with random_numbers(seed_of(self.seed, "attack", self.steps)):
            return self.batch_attack(batch)

    def gradient(self, *batch: Any) -> Tensor:
        """(n,): the gradient of the mean loss at the model, on (x, y), on a batch of any kind, or on the next one.

        Zero for frozen parameters and buffers. It may hold NaN or Inf; buffers are then as if the batch had not been.
        `last_loss` and `logged` tell of it afterwards.
        """
        given = self.batch() if not batch else batch[0] if len(batch) == 1 else batch
        parameters = [each for each in self.module.parameters() if each.requires_grad]
        before = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        self.module.train()
        with self._own_random_numbers("step"), torch.enable_grad():
            loss, self.logged = batch_loss(self.module, self.criterion, given, max(0, self.batches.position - 1))
            found = (
                [None] * len(parameters) if loss is None else torch.autograd.grad(loss, parameters, allow_unused=True)
            )
        self.steps += 1
        self.last_loss = math.nan if loss is None else float(loss.detach())
        gradient = self._flat(found)
        if before and not (math.isfinite(self.last_loss) and is_finite(gradient)):
            for buffer, old in before:
                buffer.data.copy_(old)
        return gradient

    def loss(self, *batch: Any, at: Tensor | None = None) -> float:
        """The loss of this batch without a trace: in evaluation mode, of the model or of another vector `at` (n,)."""
        given = self.batch() if not batch else batch[0] if len(batch) == 1 else batch
        kept = None if at is None else self.model.get().clone()
        training = self.module.training
        self.module.eval()
        try:
            if at is not None:
                self.model.set(at)
            with self._own_random_numbers("loss"), torch.no_grad():
                loss, _ = batch_loss(self.module, self.criterion, given, 0)
                return math.nan if loss is None else float(loss)
        finally:
            self.module.train(training)
            if kept is not None:
                self.model.set(kept)

    def half_step(self, *batch: Any) -> Tensor:
        """(n,): y = x - lr m after m <- momentum m + (1 - momentum) gradient; the model itself stays at x."""
        gradient = self.gradient(*batch)
        x = self.model.get()
        if not self._usable(gradient):
            return x.clone()
        y, mean = self.optimizer_step.half(x, gradient + self._pull(x), self.mean)
        if not is_finite(y):  # out of the dtype's range
            self.skipped += 1
            return x.clone()
        self.mean = mean
        return y

    def train(self, steps: int | None = None) -> Trained:
        """Train for `steps` (`local_steps`) batches, and say how far that went; the model stays where it came to.

        Momenta of local steps begin at zero in each call. `metrics`: mean loss, skipped steps, and means of what the
        module logged, over the steps that were taken.
        """
        steps = self.local_steps if steps is None else steps
        start, skipped = self.model.get().clone(), self.skipped
        optimizer, velocity = self._optimizer(), None
        sums: dict[str, float] = {}
        samples = 0
        for _ in range(steps):
            batch = self.batch()
            gradient = self.gradient(batch)
            if not self._usable(gradient):
                continue
            samples += _size(batch)
            for name, value in {"loss": self.last_loss, **self.logged}.items():
                sums[name] = sums.get(name, 0.0) + value
            x = self.model.get()
            if self.prox_mu:
                gradient = gradient + self._learning((x - start) * self.prox_mu)
            if optimizer is None:
                x_new, velocity = self.optimizer_step(x, gradient + self._pull(x), velocity)
                self.model.set(x_new)
            else:
                self._torch_step(optimizer, gradient)
        missed = self.skipped - skipped
        if not is_finite(self.model.get()):
            self.model.set(start)
            self.skipped = skipped + steps
            return Trained(torch.zeros_like(start), 0, {"skipped": float(steps)})
        metrics = {name: value / (steps - missed) for name, value in sums.items()}
        return Trained(self.model.get() - start, samples, {**metrics, "skipped": float(missed)})

    def step(self, gradient: Tensor) -> None:
        """Take the step that everyone takes with this aggregate (n,); a server without data uses `OptimizerStep`.

        Raises ModelError for another length and NonFiniteRows if the model would hold NaN or Inf; nothing changes then.
        """
        x = self.model.get()
        if gradient.shape != x.shape:
            raise ModelError(f"the model has a gradient of {len(x)} numbers, got {tuple(gradient.shape)}")
        new, velocity = self.optimizer_step(x, gradient.to(x), self.velocity)
        self.model.set(new, finite=True)
        self.velocity = velocity

    def apply(self, vector: Tensor) -> None:
        """Make these (n,) numbers the model. ModelError for another length, NonFiniteRows for NaN or Inf."""
        self.model.set(vector, finite=True)

    def evaluate(self, data: Any) -> dict[str, float]:
        """ "accuracy" (for labels) and "loss" on (x, y), a `Split`'s test set, or a loader of pairs."""
        with self._own_random_numbers("evaluate"):
            return evaluate(self.module, data, self.criterion)

    def state(self) -> dict[str, Tensor | int]:
        """All that a restarted node needs to go on bit by bit: copies of tensors, and ints; one flat mapping."""
        state: dict[str, Tensor | int] = {"vector": self.model.get().clone()}
        state |= {f"buffer/{name}": each for name, each in self.model.local_buffers().items()}
        state |= {name: each.clone() for name in ("mean", "velocity") if (each := getattr(self, name)) is not None}
        state |= {"epoch": self.batches.epoch, "position": self.batches.position}
        return state | {"steps": self.steps, "skipped": self.skipped}

    def load_state(self, state: Mapping[str, Tensor | int]) -> None:
        """Take up what `state` gave, on a learner made alike. ModelError names what is missing, unknown or misfits.

        Nothing changes unless all of it fits.
        """
        own = self.state()
        needed, allowed = own.keys() - {"mean", "velocity"}, own.keys() | {"mean", "velocity"}
        if wrong := sorted((needed - state.keys()) | (state.keys() - allowed)):
            raise ModelError(f"the state is of another model: missing or unknown {', '.join(wrong)}")
        for name, value in state.items():
            like = own.get(name, own["vector"])
            fits = isinstance(value, int) if isinstance(like, int) else _alike(value, like)
            if not fits:
                raise ModelError(f"the state's {name} does not fit this learner's: it is {_shown(value)}")
        epoch, position = self.batches.epoch, self.batches.position
        try:
            self.batches.seek(_int(state["epoch"]), _int(state["position"]))
        except DataError:
            self.batches.seek(epoch, position)
            raise
        self.model.set(_tensor(state["vector"]))
        buffers = dict(self.module.named_buffers())
        for name in state:
            if name.startswith("buffer/"):
                buffers[name.removeprefix("buffer/")].data.copy_(_tensor(state[name]))
        device = self.model.get().device
        self.mean, self.velocity = (
            _tensor(state[name]).to(device, copy=True) if name in state else None for name in ("mean", "velocity")
        )
        self.steps, self.skipped = _int(state["steps"]), _int(state["skipped"])

    def _own_random_numbers(self, what: str) -> Any:
        return random_numbers(seed_of(self.seed, what, self.steps)) if self._draws else nullcontext()

    def _usable(self, gradient: Tensor) -> bool:
        """Whether to step along it; counts it if not."""
        usable = math.isfinite(self.last_loss) and is_finite(gradient)
        self.skipped += not usable
        return usable

    def _flat(self, found: Any) -> Tensor:
        """(n,): gradients of the parameters that learn, None where the loss does not depend on one, between zeros."""
        like = self.model.get()
        learning = [each for each in self.module.parameters() if each.requires_grad]
        parts = [
            torch.zeros_like(p).flatten() if g is None else g.to_dense().flatten()
            for p, g in zip(learning, found, strict=True)
        ]
        if self._everything_learns:
            return torch.cat(parts)
        whole = torch.zeros_like(like)
        whole[self.model.trainable] = torch.cat(parts)
        return whole

    def _learning(self, values: Tensor) -> Tensor:
        """(n,): zero where nothing learns."""
        return values if self._everything_learns else values.masked_fill(~self.model.trainable, 0.0)

    def _pull(self, x: Tensor) -> Tensor | float:
        """Weight decay's part of the gradient at x."""
        return self._learning(x * self.weight_decay) if self.weight_decay else 0.0

    def _optimizer(self) -> torch.optim.Optimizer | None:
        if self.make_optimizer is not None:
            return self.make_optimizer([each for each in self.module.parameters() if each.requires_grad])
        return make_optimizer(self.module) if is_lightning(self.module) else None

    def _torch_step(self, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
        """Let torch's optimiser move the parameters, which are views of the vector."""
        parameters = [each for each in self.module.parameters() if each.requires_grad]
        parts = gradient[self.model.trainable].split_with_sizes([each.numel() for each in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view(parameter.shape)
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None


def _size(batch: Any) -> int:
    """Samples of a batch: the length of the first tensor in it; 1 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((_size(each) for each in parts), 1)


def _alike(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and (value.shape, value.dtype) == (like.shape, like.dtype)


def _shown(value: Any) -> str:
    return f"{value.dtype} of {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.40}"


def _tensor(value: Tensor | int) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def _int(value: Tensor | int) -> int:
    assert isinstance(value, int)
    return value
