"""Any Flower strategy, with a robust aggregation of the clients' updates in front of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING, getLogger
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic, Result, Strategy

import byzflow
from byzflow.errors import ByzflowError, NotEnoughSenders, RowsError, SpecError
from byzflow_flower import memory
from byzflow_flower.audit import Rejection, RoundAudit
from byzflow_flower.buffers import median_buffers
from byzflow_flower.replies import Reply, median_metrics, sort_out
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
      `audit`, and in the round's metrics as `robust-rejected/<node id>`. Weights are `robust-weight/<node id>`.
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
    f : Byzantine clients per round that the rule must bear; fills each `f` that `spec` leaves open.
    examples_cap : use the claimed numbers of examples as weights, each cut to this many (> 0). Only for rules
        that take `sample_weights`.
    buffers : "median" of the replies (for integers the lower one), or "server" to keep what was sent.
    buffer_names : shell patterns of floating arrays that are buffers; BatchNorm's running statistics.

    Attributes
    ----------
    f : clients per round that the rule bears, as `spec` and `f` declare it.
    audit, evaluate_audit : a `RoundAudit` for each round of training and of evaluation.
    state : what a stateful rule remembers, by node where it is one thing a client; passed to its next call.

    Raises
    ------
    SpecError : `spec` does not read, or is no aggregation.
    NotEnoughSenders : in the first round, before anything is sent: too few clients for `spec`.
    ValueError : an option is out of range, or the wrapped strategy sends clients several models.
    TypeError : the wrapped strategy is one of FedXgb*.
    """

    def __init__(
        self,
        strategy: Strategy,
        spec: str | byzflow.Operator,
        *,
        f: int | None = None,
        examples_cap: float | None = None,
        buffers: Literal["median", "server"] = "median",
        buffer_names: Sequence[str] = BATCH_NORM,
    ) -> None:
        self.operator = byzflow.parse(spec, f=f) if isinstance(spec, str) else spec
        if isinstance(self.operator, byzflow.Attack) or self.operator.out_rows(1000) != 1:
            raise SpecError(f"{self.operator} is no aggregation; end the spec with a rule, such as '| trimmed_mean'")
        if examples_cap is not None:
            if not (np.isfinite(examples_cap) and examples_cap > 0):
                raise ValueError(f"examples_cap must be a finite number > 0, got {examples_cap}")
            if "sample_weights" not in self.operator.accepts:
                raise SpecError(f"{self.operator} takes no sample weights; leave examples_cap out")
        if buffers not in ("median", "server"):
            raise ValueError(f"buffers must be 'median' or 'server', got {buffers!r}")
        self.strategy = strategy
        self.f = self.operator.declared
        self.examples_cap = examples_cap
        self.buffers = buffers
        self.buffer_names = tuple(buffer_names)
        self.audit: list[RoundAudit] = []
        self.evaluate_audit: list[RoundAudit] = []
        self.state: Mapping[str, Any] = {}
        self._sent: SentModel | None = None
        self._asked: tuple[int, ...] = ()
        self._asked_to_evaluate: tuple[int, ...] = ()
        # What samples nodes and names the weights: the strategy inside any other wrappers.
        self._innermost = strategy
        while isinstance(inside := getattr(self._innermost, "strategy", None), Strategy):
            self._innermost = inside
        if isinstance(self._innermost, FedXgbBagging | FedXgbCyclic):
            raise TypeError(f"{type(self._innermost).__name__} sends trees, not vectors: it cannot be made robust")

    @property
    def weighted_by_key(self) -> str:
        """The metric that holds a client's number of examples."""
        return str(getattr(self._innermost, "weighted_by_key", "num-examples"))

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """As the wrapped strategy's own `start`, also where a subclass has changed it."""
        kind = type(self.strategy)
        if kind.start is Strategy.start:
            return super().start(*args, **kwargs)
        # The subclass's loop must see itself as `self`, with its own state, and still call this class's steps.
        steps = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary")
        robust_kind = type(f"Robust{kind.__name__}", (kind,), {name: _step(self, name) for name in steps})
        looping: Strategy = object.__new__(robust_kind)
        looping.__dict__ = self.strategy.__dict__
        return looping.start(*args, **kwargs)

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
        """The wrapped strategy's messages; what they carry is kept as the reference for the replies."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._asked = tuple(message.metadata.dst_node_id for message in messages)
        self._sent = SentModel.of(_model_in(messages), self.buffer_names) if messages else None
        if messages:
            self._check_senders(len(messages), len(set(grid.get_node_ids())))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """One robust update from the replies that count, applied by the wrapped strategy."""
        sent = self._sent
        if sent is None:  # nobody was asked
            return self.strategy.aggregate_train(server_round, replies)
        kept, rejected = sort_out(replies, self._asked, self.weighted_by_key, sent)
        try:
            operator = self._operator_for(len(kept), rejected)
            nodes = [reply.node_id for reply in kept]
            extras = memory.extras_for(self.state, nodes)
            if self.examples_cap is not None:
                extras["sample_weights"] = np.minimum([reply.examples for reply in kept], self.examples_cap)
            aggregation = operator.explain(sent.updates([reply.arrays for reply in kept]), **extras)
        except (NotEnoughSenders, RowsError) as problem:
            self._report(RoundAudit(server_round, str(self.operator), {}, tuple(rejected), str(problem)))
            return sent.record, MetricRecord(dict(self.audit[-1].metrics()))
        self.state = memory.by_node(aggregation.state, nodes, self.state)
        shares = _shares(kept, aggregation.weights)
        self._report(RoundAudit(server_round, str(operator), shares, tuple(rejected)))

        buffers = median_buffers(sent, kept) if self.buffers == "median" else sent.kept_buffers
        offered = sent.offered(aggregation.value)
        del aggregation  # a model's memory, before the wrapped strategy takes its own
        metrics = median_metrics(kept, self.weighted_by_key)
        arrays, reported = self.strategy.aggregate_train(
            server_round, [reply.answering(metrics, offered) for reply in kept]
        )
        return (
            None if arrays is None else sent.restored(arrays, buffers),
            MetricRecord({**dict(reported or {}), **self.audit[-1].metrics()}),
        )

    def save(self, file: str | Path) -> None:
        """Write what the rule remembers to a safetensors file; with the model, all that a resumed run needs of it."""
        memory.save(file, self.state)

    def resume(self, file: str | Path) -> None:
        """Take up what `save` wrote. Raises ByzflowError if the file is none, or another rule's."""
        state = memory.load(file)
        if unknown := state.keys() - self.operator.accepts:
            raise ByzflowError(f"{file} holds {', '.join(sorted(unknown))}, which {self.operator} does not remember")
        self.state = state

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The wrapped strategy's messages."""
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._asked_to_evaluate = tuple(message.metadata.dst_node_id for message in messages)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Each metric's median over the replies that count, as the wrapped strategy reports it."""
        if not self._asked_to_evaluate:
            return self.strategy.aggregate_evaluate(server_round, replies)
        kept, rejected = sort_out(replies, self._asked_to_evaluate, self.weighted_by_key, None)
        audit = RoundAudit(server_round, "median of metrics", {}, tuple(rejected))
        self.evaluate_audit.append(audit)
        for each in rejected:
            log(INFO, "aggregate_evaluate: node %d rejected: %s", each.node_id, each.reason)
        if not kept:
            return MetricRecord(dict(audit.metrics()))
        metrics = median_metrics(kept, self.weighted_by_key)
        reported = self.strategy.aggregate_evaluate(server_round, [reply.answering(metrics) for reply in kept])
        return MetricRecord({**dict(reported or {}), **audit.metrics()})

    def _check_senders(self, n: int, connected: int) -> None:
        try:
            self.operator.check(n)
        except NotEnoughSenders as error:
            if not self.audit:
                why = f"{error.why}; sample more nodes (fraction_train, min_train_nodes) or lower f"
                raise NotEnoughSenders(error.operator, error.needed, error.given, why) from None
            log(WARNING, "configure_train: %s; the model will be kept unless f shrinks", error)
        sure = max(0, connected - self.f)
        for name in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            minimum = getattr(self._innermost, name, 0)
            if minimum > sure and not self.audit:
                log(
                    WARNING,
                    "configure_train: %s=%d, but with f=%d only %d of the %d nodes are sure to stay, and Flower waits "
                    "without limit for one that leaves; lower %s",
                    *(name, minimum, self.f, sure, connected, name),
                )

    def _operator_for(self, n: int, rejected: Sequence[Rejection]) -> byzflow.Operator:
        """The rule for n replies: f less the malformed ones, and less silent ones as far as it has to be."""
        if not n:
            raise RowsError("no reply counts")
        malformed = sum(each.malformed for each in rejected)
        for silent in range(len(self._asked) - n - malformed + 1):
            operator = self.operator.shrunk(malformed + silent)
            try:
                operator.check(n)
                return operator
            except NotEnoughSenders as error:
                problem = error
        raise problem

    def _report(self, audit: RoundAudit) -> None:
        self.audit.append(audit)
        for number, line in enumerate(audit.lines()):
            level = WARNING if audit.kept_model and not number else INFO
            log(level, "aggregate_train: %s" if not number else "\t> %s", line)
        malformed = sum(each.malformed for each in audit.rejected)
        if malformed > self.f:
            log(WARNING, "aggregate_train: %d malformed replies, more than the declared f=%d", malformed, self.f)


def _step(robust: Robust, name: str) -> Any:
    return lambda _, *args, **kwargs: getattr(robust, name)(*args, **kwargs)


def _model_in(messages: Sequence[Message]) -> ArrayRecord:
    """The one model that all messages carry."""
    models = [r for message in messages for r in message.content.values() if isinstance(r, ArrayRecord)]
    if len(models) != len(messages) or any(each is not models[0] and each != models[0] for each in models):
        raise ValueError(
            "the wrapped strategy must send one model (ArrayRecord), the same to every node: updates to different "
            "models cannot be compared"
        )
    return models[0]


def _shares(kept: Sequence[Reply], weights: Any) -> dict[int, float]:
    shares: dict[int, float] = {}
    for reply, weight in zip(kept, weights.tolist(), strict=True):
        shares[reply.node_id] = shares.get(reply.node_id, 0.0) + weight
    return shares
