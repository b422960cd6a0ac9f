"""Any Flower strategy, with a robust aggregation of the clients' updates in front of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, getLogger
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic, Result, Strategy

import byzflow
from byzflow import memory
from byzflow.attendance import shrunk_for
from byzflow.engine.audit import distances
from byzflow.errors import ByzflowError, NotEnoughSenders, RowsError, SpecError
from byzflow.rows import Rows
from byzflow_flower import partial, standing
from byzflow_flower.audit import RoundAudit
from byzflow_flower.audit_trail import AuditTrail
from byzflow_flower.buffers import median_buffers
from byzflow_flower.loop import in_its_own_loop
from byzflow_flower.replies import median_metrics, sort_out
from byzflow_flower.rule import Rule
from byzflow_flower.run_config import Scalar, options_in
from byzflow_flower.senders import check_senders
from byzflow_flower.sent_model import BATCH_NORM, SentModel

log = getLogger("flwr").log  # Flower's own logger


class Robust(Strategy):
    """Wraps a Flower strategy so that lying, broken and silent clients cannot steer or end the training.

        Robust(FedAdam(eta=0.01), "nnm | trimmed_mean", f=3)

    Each round the clients' updates (reply minus what was sent, matched by key) are aggregated once, by `spec`.
    Every reply that counts is then rewritten to carry that one result, weight 1 and the median of each metric, and
    handed to the wrapped strategy. Whatever it averages, it gets the robust result: its server optimiser,
    momentum, proximal term, differential-privacy noise and metric functions go on working.

    What is promised while at most f clients of a round lie, break or are silent:

    * No reply ends the run. One with other keys, shapes or dtypes, unreadable bytes, NaN or Inf, missing or extra
      records or metrics, or a bad number of examples is rejected; its node and the reason are in the log, in
      `audit`, and in the round's metrics as `robust-rejected/<node id>`. What each reply that counted weighed, how far
      it was from the result, and the node's running suspicion are `robust-weight`, `-distance` and `-suspicion`.
    * A malformed reply uses up one of f, for the rule of that round. An error or a missing reply does so only as
      far as the rule would otherwise be invalid: honest clients crash too, and f must still cover the liars.
    * With too few replies left for the rule, the model stays as it was, and a warning says so.
    * How many examples a client claims to have plays no part, unless `examples_cap` is set.
    * Integer arrays and buffers stay out of every distance and of the server's optimiser and keep their dtype.
    * Reported metrics, of training and of evaluation, are medians: a minority cannot move them beyond honest
      values. Wrapped strategies that use each client's own metric (QFedAvg's fairness) see the same for all.

    What is not: no order of nesting keeps the guarantee that Flower's accounting reports for its
    differential-privacy wrappers, since a robust rule is not a mean (nest `Robust` outside, or a malformed reply
    reaches the wrapper first). Secure aggregation cannot be used: it hides what must be compared. FedXgb* is
    refused: trees are not vectors.

    Parameters
    ----------
    strategy : the Flower strategy to wrap.
    spec : the aggregation, such as "median", "krum" or "arc | nnm | trimmed_mean", or an operator.
    f : Byzantine clients per round that the rule must bear; fills each `f` that `spec` leaves open. "auto": so many
        that they are the `fraction` (0 to below 0.5) of the clients sampled in a round, rounded up.
    per_layer : apply the rule to every array by itself, so that each layer has weights of its own.
    exclude_after : a node is asked no more after so many (>= 1) of its replies were malformed; None for never. Counted
        is only what a reply shows by itself, so that nobody can have another node excluded: see `Standing`. Each
        excluded node that is sampled uses up one of f.
    examples_cap : use the claimed numbers of examples as weights, each cut to this many (> 0). Only for rules
        that take `sample_weights`.
    buffers : "median" of the replies (for integers the lower one), or "server" to keep what was sent.
    buffer_names : shell patterns of floating arrays that are buffers; BatchNorm's running statistics.
    trained : shell patterns of the arrays that clients send back, such as ("*lora_*",); the others stay as they are.
    audit_file : where to append each round's audit as a line of JSON, for `byzflow audit`.
    tensorboard_dir : folder for TensorBoard's event files of the same figures.

    Attributes
    ----------
    operator, f : the rule of the latest round (before the first: for no clients), and what it bears.
    audit, evaluate_audit : a `RoundAudit` for each round of training and of evaluation.
    state : what a stateful rule remembers, by node where it is one thing a client; passed to its next call.

    Raises
    ------
    SpecError : `spec` does not read, or is no aggregation, or f does not fit.
    NotEnoughSenders : in the first round, before anything is sent: too few clients for `spec`.
    ValueError : an option is out of range, or the wrapped strategy sends clients several models.
    TypeError : the wrapped strategy is one of FedXgb*.
    ByzflowError : the audit cannot be written where it should be.
    """

    def __init__(
        self,
        strategy: Strategy,
        spec: str | byzflow.Operator,
        *,
        f: int | Literal["auto"] | None = None,
        fraction: float | None = None,
        per_layer: bool = False,
        exclude_after: int | None = None,
        examples_cap: float | None = None,
        buffers: Literal["median", "server"] = "median",
        buffer_names: Sequence[str] = BATCH_NORM,
        trained: Sequence[str] = ("*",),
        audit_file: str | Path | None = None,
        tensorboard_dir: str | Path | None = None,
    ) -> None:
        if isinstance(strategy, type) or not callable(getattr(strategy, "aggregate_train", None)):
            kind = strategy.__name__ if isinstance(strategy, type) else type(strategy).__name__
            raise TypeError(f"Robust wraps a strategy, such as FedAvg(fraction_evaluate=0.0), got {kind}")
        self.rule = Rule(spec, f, fraction, per_layer)
        self._rule_for(0)
        if examples_cap is not None:
            if not (np.isfinite(examples_cap) and examples_cap > 0):
                raise ValueError(f"examples_cap must be a finite number > 0, got {examples_cap}")
            if "sample_weights" not in self.operator.accepts:
                raise SpecError(f"{self.operator} takes no sample weights; leave examples_cap out")
        if buffers not in ("median", "server"):
            raise ValueError(f"buffers must be 'median' or 'server', got {buffers!r}")
        if exclude_after is not None and exclude_after < 1:
            raise ValueError(f"exclude_after must be an integer >= 1, got {exclude_after}")
        if exclude_after is not None and f != "auto" and not self.f:
            raise ValueError("exclude_after needs f, how many clients of a round may lie, and f is 0")
        self.strategy = strategy
        self.examples_cap = examples_cap
        self.buffers = buffers
        self.buffer_names = tuple(buffer_names)
        self.trained = tuple(trained)
        self.state: Mapping[str, Any] = {}
        self._trail = AuditTrail(exclude_after, audit_file, tensorboard_dir)
        self._model = ArrayRecord()  # what was sent, of which `_sent` is the part that clients send back
        self._sent: SentModel | None = None
        self._asked: tuple[int, ...] = ()
        self._asked_to_evaluate: tuple[int, ...] = ()
        # What samples nodes and names the weights: the strategy inside any other wrappers.
        self._innermost = strategy
        while isinstance(inside := getattr(self._innermost, "strategy", None), Strategy):
            self._innermost = inside
        if isinstance(self._innermost, FedXgbBagging | FedXgbCyclic):
            raise TypeError(f"{type(self._innermost).__name__} sends trees, not vectors: it cannot be made robust")

    @classmethod
    def from_run_config(cls, strategy: Strategy, run_config: Mapping[str, Scalar], **options: Any) -> Self:
        """With the options that an app's run-config holds: `aggregator`, `f`, `byzantine-fraction` and the others.

        See `byzflow_flower.run_config`. `options` are more arguments; where both say something, the run-config holds.
        Raises SpecError, naming the key, for a value of another kind.
        """
        return cls(strategy, **{**options, **options_in(run_config)})

    @property
    def audit(self) -> list[RoundAudit]:
        """One for each round of training."""
        return self._trail.training

    @property
    def evaluate_audit(self) -> list[RoundAudit]:
        """One for each round of evaluation."""
        return self._trail.evaluation

    @property
    def weighted_by_key(self) -> str:
        """The metric that holds a client's number of examples."""
        return str(getattr(self._innermost, "weighted_by_key", "num-examples"))

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """As the wrapped strategy's own `start`, also where a subclass has changed it."""
        if type(self.strategy).start is Strategy.start:
            return super().start(*args, **kwargs)
        return in_its_own_loop(self.strategy, self).start(*args, **kwargs)

    def summary(self) -> None:
        """Log the robust settings, then the wrapped strategy's own."""
        examples = "ignored" if self.examples_cap is None else f"capped at {self.examples_cap:g}"
        log(INFO, "\t├──> Robust aggregation: %s", self.operator)
        log(INFO, "\t│\t├── Numbers of examples claimed: %s", examples)
        log(INFO, "\t│\t└── Buffers: %s", "median of replies" if self.buffers == "median" else "kept as sent")
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The wrapped strategy's messages, but for excluded nodes; what they carry is the reference for the replies."""
        sampled = list(self.strategy.configure_train(server_round, arrays, config, grid))
        messages = self._without_excluded(sampled)
        self._asked = tuple(message.metadata.dst_node_id for message in messages)
        self._sent = None
        if messages:
            self._model = partial.model_in(messages)
            self._sent = SentModel.of(partial.trained(self._model, self.trained), self.buffer_names)
            self._rule_for(len(sampled), len(sampled) - len(messages))
            connected = len(set(grid.get_node_ids()))
            check_senders(self.operator, self.f, len(messages), connected, self._innermost, first=not self.audit)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """One robust update from the replies that count, applied by the wrapped strategy."""
        sent = self._sent
        if sent is None:  # nobody was asked
            return self.strategy.aggregate_train(server_round, replies)
        kept, rejected = sort_out(replies, self._asked, self.weighted_by_key, sent)
        malformed = sum(each.malformed for each in rejected)
        try:
            operator = shrunk_for(self.operator, len(kept), malformed, len(self._asked) - len(kept) - malformed)
            nodes = [reply.node_id for reply in kept]
            extras = memory.extras_for(self.state, nodes)
            if self.examples_cap is not None:
                extras["sample_weights"] = np.minimum([reply.examples for reply in kept], self.examples_cap)
            rows = sent.updates([reply.arrays for reply in kept])
            aggregation = operator.explain(rows, **extras)
        except (NotEnoughSenders, RowsError) as problem:
            audit = RoundAudit(server_round, str(self.operator), {}, tuple(rejected), str(problem))
            return self._model, MetricRecord(dict(self._trail.train(audit, self.f).metrics()))
        self.state = memory.by_node(aggregation.state, nodes, self.state)
        away = aggregation.distances
        if away is None:
            away = distances(rows, Rows.of([aggregation.value]))
        audit = RoundAudit(
            server_round,
            str(operator),
            _by_node(nodes, aggregation.weights),
            tuple(rejected),
            distances=_by_node(nodes, away),
        )
        audit = self._trail.train(audit, self.f)

        buffers = median_buffers(sent, kept) if self.buffers == "median" else sent.kept_buffers
        offered = partial.completed(sent.offered(aggregation.value), sent.record, self._model)
        del aggregation, rows  # a model's memory, before the wrapped strategy takes its own
        metrics = median_metrics(kept, self.weighted_by_key)
        arrays, reported = self.strategy.aggregate_train(
            server_round, [reply.answering(metrics, offered) for reply in kept]
        )
        return (
            None if arrays is None else partial.completed(sent.restored(arrays, buffers), sent.record, self._model),
            MetricRecord({**dict(reported or {}), **audit.metrics()}),
        )

    def save(self, file: str | Path) -> None:
        """Write what the rule remembers, and each node's standing, to a safetensors file.

        With the model it is all that a resumed run needs of this class.
        """
        memory.save(file, {**self.state, **self._trail.standing.as_state()})

    def resume(self, file: str | Path) -> None:
        """Take up what `save` wrote. Raises ByzflowError if the file is none, or another rule's."""
        found = memory.load(file)
        state = {name: value for name, value in found.items() if name not in (standing.SUSPICION, standing.STRIKES)}
        if unknown := state.keys() - self.operator.accepts:
            raise ByzflowError(f"{file} holds {', '.join(sorted(unknown))}, which {self.operator} does not remember")
        self.state = state
        self._trail.standing = standing.Standing.of_state(found)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The wrapped strategy's messages, but for excluded nodes."""
        sampled = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        messages = self._without_excluded(sampled)
        self._asked_to_evaluate = tuple(message.metadata.dst_node_id for message in messages)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Each metric's median over the replies that count, as the wrapped strategy reports it."""
        if not self._asked_to_evaluate:
            return self.strategy.aggregate_evaluate(server_round, replies)
        kept, rejected = sort_out(replies, self._asked_to_evaluate, self.weighted_by_key, None)
        audit = self._trail.evaluate(
            RoundAudit(server_round, "median of metrics", {}, tuple(rejected), step="evaluate")
        )
        if not kept:
            return MetricRecord(dict(audit.metrics()))
        metrics = median_metrics(kept, self.weighted_by_key)
        reported = self.strategy.aggregate_evaluate(server_round, [reply.answering(metrics) for reply in kept])
        return MetricRecord({**dict(reported or {}), **audit.metrics()})

    def _rule_for(self, n: int, excluded: int = 0) -> None:
        """Set the rule for n sampled clients, of which some are excluded: Byzantine ones that are known and gone."""
        self.operator = self.rule.operator(n).shrunk(excluded)
        self.f = max(0, self.rule.bears(n) - excluded)

    def _without_excluded(self, messages: Sequence[Message]) -> list[Message]:
        # After the sampling and not before it: Flower waits without limit for as many nodes as it is to sample from.
        return [each for each in messages if each.metadata.dst_node_id not in self._trail.excluded]


def _by_node(nodes: Sequence[int], values: Any) -> dict[int, float]:
    """Values of rows as values of nodes; a node that was asked twice has the sum."""
    found: dict[int, float] = {}
    for node, value in zip(nodes, () if values is None else values.tolist(), strict=values is not None):
        found[node] = found.get(node, 0.0) + value
    return found
