"""A LightningModule and a LightningDataModule as a Flower ClientApp."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from byzflow.errors import SpecError
from byzflow_flower.mods import MODS, ClientAppCallable, Mod, byzantine, send, wants_label_flip
from byzflow_flower.replies import only_record
from byzflow_lightning import batches, optimizer_memory
from byzflow_lightning.callback import Callback
from byzflow_lightning.quiet import QuietTrainers, random_state, silence

Buffers = Literal["send", "received", "local"]
OPTIMIZER, BUFFERS = "byzflow-optimizer", "byzflow-buffers"  # records of a client's own state


def client_app(
    *,
    module: Callable[[Context], Any],
    datamodule: Callable[[Context], Any],
    trainer: Mapping[str, Any] | Callable[[Context], Mapping[str, Any]] | None = None,
    keep_optimizer: bool = False,
    deltas: bool = False,
    buffers: Buffers = "send",
    attack: str | Mod | None = None,
    f: int | str = 0,
    poison: Callable[[Any], Any] | None = None,
    seed: int | None = 0,
    count: Callable[[Any], int] = batches.size,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """A ClientApp that answers `train` and `evaluate` messages with `Trainer.fit` and `Trainer.validate`.

        app = client_app(
            module=lambda context: Digits(lr=context.run_config["learning-rate"]),
            datamodule=lambda context: Shard(context.node_config["partition-id"]),
            trainer={"max_epochs": 2},
        )

    It receives and replies as Flower's examples do: one record of arrays, the module's state dict, and one of
    metrics, every number that the module logs and `num-examples`. The Trainer is quiet: it writes and prints nothing.

    Parameters
    ----------
    module : gives a new LightningModule; called for each message, then filled with the arrays received.
    datamodule : gives the LightningDataModule of this node; called for each message.
    trainer : arguments of the Trainer, such as max_epochs (1), max_steps, accelerator (cpu), precision, callbacks, or
        a function that gives them. Callbacks and plugins in a mapping are templates: each message gets copies.
    keep_optimizer : whether moments and step counts outlive the round, in this node's `context.state`. Learning rates
        and schedules begin anew in each round.
    deltas : reply with what training changed instead of with weights, for a server that adds; `Robust` and Flower's
        own strategies want weights.
    buffers : what becomes of arrays that are no parameters, such as BatchNorm's statistics: "send" those that training
        left; "received" sends back what came, and nothing of this node's data gets out by them; "local" does so too,
        and this node trains and evaluates with buffers of its own.
    attack : a lie: a mod of `byzflow_flower.mods`, its name, or the spec of an attack on one's own update.
    f : the clients with partition id 0 to f - 1 tell it; may name a key of the run-config.
    poison : batch -> batch, used where `label_flip` asks for it.
    seed : each round and partition draws its own random numbers from it; None leaves random numbers alone.
    count : the number of samples of a batch, for `num-examples`.
    mods : further mods, outside of all these.

    Raises
    ------
    SpecError : an option or the attack does not read; label_flip without `poison`.
    """
    if buffers not in ("send", "received", "local"):
        raise SpecError(f"buffers must be 'send', 'received' or 'local', got {buffers!r}")
    ready = None if callable(trainer) else _trainers(trainer or {})
    lies = [] if attack is None else [byzantine(_mod(attack, poison), f)]
    app = ClientApp(mods=[*mods, *([_as_deltas] if deltas else []), *lies])

    def trainers(context: Context) -> tuple[QuietTrainers, QuietTrainers]:
        return ready or _trainers(trainer(context) if callable(trainer) else {})

    def prepare(message: Message, context: Context) -> tuple[Any, ArrayRecord]:
        """The module with the arrays received, and with this node's own buffers if it has some."""
        net, received = module(context), only_record(message, ArrayRecord)[1]
        arrays = received.to_torch_state_dict()
        if buffers == "local" and BUFFERS in context.state:
            arrays |= context.state.array_records[BUFFERS].to_torch_state_dict()
        net.load_state_dict(arrays)
        return net, received

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if wants_label_flip(message) and poison is None:
            raise SpecError("label_flip needs client_app(poison=...), a function that flips a batch's labels")
        with silence(), random_state(seed, *_draw(message, context)):
            net, received = prepare(message, context)
            watch = _Watch(count, context.state.array_records.get(OPTIMIZER) if keep_optimizer else None)
            if wants_label_flip(message):
                _poison(net, poison)
            fit = trainers(context)[0].for_module(net, watch)
            fit.fit(net, datamodule=datamodule(context))
            if keep_optimizer:
                context.state[OPTIMIZER] = optimizer_memory.save(fit.optimizers)
        arrays = {name: each.detach().cpu() for name, each in net.state_dict().items()}
        if buffers != "send":
            names = arrays.keys() - dict(net.named_parameters(remove_duplicate=False)).keys()
            if buffers == "local":
                context.state[BUFFERS] = ArrayRecord({name: arrays[name] for name in arrays if name in names})
            arrays |= {name: each for name, each in received.to_torch_state_dict().items() if name in names}
        name = only_record(message, ArrayRecord)[0]
        return Message(RecordDict({name: ArrayRecord(arrays), "metrics": watch.metrics(fit)}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        with silence(), random_state(seed, *_draw(message, context)):
            net, _ = prepare(message, context)
            watch = _Watch(count)
            test = trainers(context)[1].for_module(net, watch)
            test.validate(net, datamodule=datamodule(context), verbose=False)
        return Message(RecordDict({"metrics": watch.metrics(test)}), reply_to=message)

    return app


class _Watch(Callback):
    """Counts the samples of one epoch, and hands optimisers what they remember."""

    def __init__(self, count: Callable[[Any], int], remembered: ArrayRecord | None = None) -> None:
        self.count, self.remembered, self.examples = count, remembered, 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self.remembered is not None:
            optimizer_memory.load(self.remembered, trainer.optimizers)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0:
            self.examples += self.count(batch)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.examples += self.count(batch)

    def metrics(self, trainer: Any) -> MetricRecord:
        """Every number that the module logged, and how many samples there were."""
        logged = {name: float(each) for name, each in trainer.callback_metrics.items() if _is_number(each)}
        return MetricRecord({**logged, "num-examples": self.examples})


def _trainers(options: Mapping[str, Any]) -> tuple[QuietTrainers, QuietTrainers]:
    """For training and for evaluation."""
    options = {"max_epochs": 1, "accelerator": "cpu", **options}
    return QuietTrainers({"limit_val_batches": 0, **options}), QuietTrainers(options)


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float)


def _mod(attack: str | Mod, poison: Any) -> Mod:
    """The mod of an attack, by name or spec."""
    if not isinstance(attack, str):
        return attack
    name = attack.replace("-", "_")
    if name == "label_flip" and poison is None:
        raise SpecError("label_flip needs client_app(poison=...), a function that flips a batch's labels")
    return MODS[name] if name in MODS else send(attack)


def _poison(net: Any, poison: Any) -> None:
    """Let the module train on poisoned batches."""
    step = net.training_step

    @wraps(step)
    def poisoned(batch: Any, *rest: Any) -> Any:
        return step(poison(batch), *rest)

    net.training_step = poisoned


def _as_deltas(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod: weights of the reply less those received; buffers as they are."""
    received = only_record(message, ArrayRecord)[1]
    reply = call_next(message, context)
    if reply.has_content() and message.metadata.message_type.split(".")[0] == "train":
        name, record = only_record(reply, ArrayRecord)
        before, after = received.to_torch_state_dict(), record.to_torch_state_dict()
        changed = {k: v - before[k] if v.is_floating_point() else v for k, v in after.items()}
        reply.content[name] = ArrayRecord(changed)
    return reply


def _draw(message: Message, context: Context) -> tuple[int, int]:
    """The round and the partition; 0 where they are not told."""
    rounds = [
        r["server-round"] for r in message.content.values() if isinstance(r, ConfigRecord) and "server-round" in r
    ]
    return int(rounds[0]) if rounds else 0, int(context.node_config.get("partition-id", 0))  # type: ignore[arg-type]
