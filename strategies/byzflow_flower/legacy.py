"""The same wrapper for strategies of Flower's older API, `flwr.server.strategy`.

That API is deprecated: Flower keeps it for apps written before the Message API and gives it no new features. New
apps use `byzflow_flower.Robust` and `flwr.serverapp.strategy`. What is here only translates: parameters into records
by position, clients into nodes, so that replies are judged and aggregated by `byzflow_flower.Robust` itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    Status,
    parameters_to_ndarrays,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedXgbBagging, FedXgbCyclic, FedXgbNnAvg
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

import byzflow
from byzflow_flower import compat, robust
from byzflow_flower.audit import RoundAudit

Failures = list[tuple[ClientProxy, Any] | BaseException]
Instructions = TypeVar("Instructions", FitIns, EvaluateIns)
EXAMPLES, LOSS = "num-examples", "loss"


class Robust(LegacyStrategy):
    """Wraps a `flwr.server.strategy.Strategy`, a deprecated API, as `byzflow_flower.Robust` wraps one of today's.

        strategy = legacy.Robust(FedAdam(initial_parameters=parameters), "nnm | trimmed_mean", f=2)

    Options, promises and errors are those of `byzflow_flower.Robust`. What this API adds to them:

    * A client is the node of its id (`cid`); one whose id is no number gets the next number from 1 in order of
      appearance, and `clients` tells which client each node is.
    * Arrays have no names here, so they are matched by position and named by it ("0", "1", ...), and buffers can be
      told by their dtype only.
    * Of a client's metrics, numbers are kept, as medians; text and bytes cannot be compared and are dropped.
    * `accept_failures=False` of the wrapped strategy has no effect: failures are what f is for.

    Attributes
    ----------
    robust : the `byzflow_flower.Robust` that does the work, with `audit`, `evaluate_audit`, `state`, `save`, `resume`.
    clients : client id by node id.

    Raises
    ------
    TypeError : the wrapped strategy is one of FedXgb*: trees are not vectors.
    """

    def __init__(
        self, strategy: LegacyStrategy, spec: str | byzflow.Operator, *, f: int | None = None, **options: Any
    ) -> None:
        if isinstance(strategy, FedXgbBagging | FedXgbCyclic | FedXgbNnAvg):
            raise TypeError(f"{type(strategy).__name__} sends trees, not vectors: it cannot be made robust")
        self.strategy = strategy
        self.clients: dict[int, str] = {}
        self._inner = _Translated(strategy)
        self.robust = robust.Robust(self._inner, spec, f=f, **options)

    @property
    def audit(self) -> list[RoundAudit]:
        """A `RoundAudit` for each round of training."""
        return self.robust.audit

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """The wrapped strategy's."""
        return self.strategy.initialize_parameters(client_manager)

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, dict[str, Scalar]] | None:
        """The wrapped strategy's."""
        return self.strategy.evaluate(server_round, parameters)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """The wrapped strategy's instructions; what they carry is kept as the reference for the replies."""
        asked = self.strategy.configure_fit(server_round, parameters, client_manager)
        connected = [self._node(cid) for cid in client_manager.all()]
        self._inner.messages = self._messages(asked, MessageType.TRAIN)
        grid: Any = _Connected(connected)
        messages = self.robust.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
        return self._those_of(messages, asked)

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: Failures
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """One robust update from the results that count, applied by the wrapped strategy."""
        self._inner.reported = {}
        arrays, metrics = self.robust.aggregate_train(server_round, self._replies(results))
        return None if arrays is None else _parameters(arrays), {**self._inner.reported, **_scalars(metrics)}

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """The wrapped strategy's instructions."""
        asked = self.strategy.configure_evaluate(server_round, parameters, client_manager)
        self._inner.messages = self._messages(asked, MessageType.EVALUATE)
        grid: Any = _Connected(())
        messages = self.robust.configure_evaluate(server_round, ArrayRecord(), ConfigRecord(), grid)
        return self._those_of(messages, asked)

    def aggregate_evaluate(
        self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]], failures: Failures
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Median loss and metrics over the results that count, as the wrapped strategy reports them."""
        self._inner.loss, self._inner.reported = None, {}
        metrics = self.robust.aggregate_evaluate(server_round, self._replies(results))
        return self._inner.loss, {**self._inner.reported, **_scalars(metrics)}

    def _those_of(
        self, messages: Iterable[Message], asked: Sequence[tuple[ClientProxy, Instructions]]
    ) -> list[tuple[ClientProxy, Instructions]]:
        """The instructions for the clients that the robust wrapper asks."""
        nodes = {message.metadata.dst_node_id for message in messages}
        return [(client, ins) for client, ins in asked if self._node(client.cid) in nodes]

    def _messages(self, asked: Sequence[tuple[ClientProxy, Any]], kind: str) -> list[Message]:
        compat.become_server()
        records: dict[int, ArrayRecord] = {}  # clients that get the same object get the same record
        self._inner.proxies = {self._node(client.cid): client for client, _ in asked}
        return [
            Message(
                RecordDict({"arrays": records.setdefault(id(ins.parameters), _record(ins.parameters))}),
                self._node(client.cid),
                kind,
            )
            for client, ins in asked
        ]

    def _replies(self, results: Sequence[tuple[ClientProxy, Any]]) -> list[Message]:
        """Each result as the reply to the message of its client; one that nobody asked for goes unheard."""
        asked = {message.metadata.dst_node_id: message for message in self._inner.messages}
        return [
            Message(_content(result), reply_to=asked[node])
            for client, result in results
            if (node := self._node(client.cid)) in asked
        ]

    def _node(self, cid: str) -> int:
        if cid.isdecimal() and len(cid) <= 20:
            node = int(cid)
        else:
            known = {client: node for node, client in self.clients.items()}
            node = known.get(cid, len(known) + 1)
        self.clients[node] = cid
        return node


class _Translated(Strategy):
    """A strategy of the older API as one of today's, as far as `byzflow_flower.Robust` uses one."""

    def __init__(self, strategy: LegacyStrategy) -> None:
        self.legacy = strategy
        self.messages: list[Message] = []
        self.proxies: dict[int, ClientProxy] = {}
        self.loss: float | None = None
        self.reported: dict[str, Scalar] = {}
        self.min_train_nodes = int(getattr(strategy, "min_fit_clients", 0))
        self.min_evaluate_nodes = int(getattr(strategy, "min_evaluate_clients", 0))
        self.min_available_nodes = int(getattr(strategy, "min_available_clients", 0))

    def summary(self) -> None:
        """Nothing: the older API logs nothing at its start."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages made of the wrapped strategy's instructions."""
        return self.messages

    configure_evaluate = configure_train

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The wrapped strategy's, on the replies as results."""
        results = []
        for reply in replies:
            metrics = _scalars(reply.content.metric_records["metrics"])
            examples = int(metrics.pop(EXAMPLES))
            arrays = _parameters(reply.content.array_records["arrays"])
            client = self.proxies[reply.metadata.src_node_id]
            results.append((client, FitRes(Status(Code.OK, ""), arrays, examples, metrics)))
        parameters, self.reported = self.legacy.aggregate_fit(server_round, results, [])
        return None if parameters is None else _record(parameters), None

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The wrapped strategy's, on the replies as results."""
        results = []
        for reply in replies:
            metrics = _scalars(reply.content.metric_records["metrics"])
            examples, loss = int(metrics.pop(EXAMPLES)), float(metrics.pop(LOSS))
            client = self.proxies[reply.metadata.src_node_id]
            results.append((client, EvaluateRes(Status(Code.OK, ""), loss, examples, metrics)))
        self.loss, self.reported = self.legacy.aggregate_evaluate(server_round, results, [])
        return None


@dataclass(frozen=True)
class _Connected:
    """The one thing that `byzflow_flower.Robust` asks a Grid for."""

    nodes: Sequence[int]

    def get_node_ids(self) -> Sequence[int]:
        """The nodes that are connected."""
        return self.nodes


def _record(parameters: Parameters) -> ArrayRecord:
    """The server's own parameters as a record."""
    arrays = zip(parameters_to_ndarrays(parameters), parameters.tensors, strict=True)
    return ArrayRecord(
        {
            str(place): Array(str(values.dtype), values.shape, parameters.tensor_type, data)
            for place, (values, data) in enumerate(arrays)
        }
    )


def _claimed(parameters: Parameters) -> ArrayRecord:
    """A client's parameters as a record; their bytes stay unread, for `byzflow_flower.npy` to judge."""
    tensors = enumerate(parameters.tensors)
    return ArrayRecord({str(place): Array("", (), parameters.tensor_type, data) for place, data in tensors})


def _parameters(record: ArrayRecord) -> Parameters:
    return Parameters([array.data for array in record.values()], "numpy.ndarray")


def _content(result: FitRes | EvaluateRes) -> RecordDict:
    """A result as a reply's records. Metrics that are no numbers, and those named as ours are, do not count."""
    metrics = MetricRecord()
    for name, value in result.metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            metrics[name] = value
    metrics[EXAMPLES] = result.num_examples
    if isinstance(result, EvaluateRes):
        metrics[LOSS] = result.loss
        return RecordDict({"metrics": metrics})
    return RecordDict({"arrays": _claimed(result.parameters), "metrics": metrics})


def _scalars(metrics: MetricRecord | None) -> dict[str, Scalar]:
    return {name: value for name, value in (metrics or {}).items() if not isinstance(value, list)}
