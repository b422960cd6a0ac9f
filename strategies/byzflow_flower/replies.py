"""Which replies of a round count. One that is not what was asked for is rejected, with its node and the reason.

Arrays are compared with what was sent. For the metrics the server has no such reference, so their names and
lengths must be those of most replies.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from byzflow_flower.audit import Rejection
from byzflow_flower.npy import BadArray
from byzflow_flower.sent_model import SentModel

Record = TypeVar("Record", ArrayRecord, MetricRecord)


class BadReply(ValueError):
    """The reply cannot be used; the message says why."""


@dataclass(frozen=True)
class Reply:
    """A reply that counts. `arrays` are views of what came in, empty for an evaluation."""

    message: Message
    metrics_name: str
    metrics: MetricRecord
    examples: float  # the client's claim, finite and > 0
    arrays_name: str = ""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def node_id(self) -> int:
        """The node that sent it."""
        return self.message.metadata.src_node_id

    @property
    def layout(self) -> tuple[object, ...]:
        """Names and lengths that Flower wants to be equal in all replies."""
        lengths = sorted((name, len(v) if isinstance(v, list) else -1) for name, v in self.metrics.items())
        return self.arrays_name, self.metrics_name, tuple(lengths)

    def answering(self, metrics: MetricRecord, arrays: ArrayRecord | None = None) -> Message:
        """The same message with other metrics and arrays."""
        content = dict(self.message.content.items())
        content[self.metrics_name] = MetricRecord(dict(metrics))
        if arrays is not None:
            content[self.arrays_name] = arrays.copy()  # strategies empty the records they get
        message = copy.copy(self.message)
        message.content = RecordDict(content)
        return message


def sort_out(
    messages: Iterable[Message], asked: Sequence[int], weighted_by: str, sent: SentModel | None
) -> tuple[list[Reply], list[Rejection]]:
    """The replies that count, by node id, and the rejected nodes.

    `asked` lists the node of each message that was sent; `weighted_by` names the metric with the number of
    examples; `sent` is None for an evaluation, whose arrays do not matter.
    """
    replies: list[Reply] = []
    rejected: list[Rejection] = []
    unanswered = Counter(asked)
    for message in messages:
        node = message.metadata.src_node_id
        if message.has_error() and node not in asked:
            continue  # the SuperLink's own word for a node that is gone: "no reply" below names that node
        if not unanswered[node]:
            # Beyond the replies that f is about: one who lies and then repeats itself must not make f smaller.
            rejected.append(Rejection(node, "it was not asked, or has answered already", malformed=False))
            continue
        unanswered[node] -= 1
        if message.has_error():
            rejected.append(Rejection(node, f"error {message.error.code}: {message.error.reason}", malformed=False))
            continue
        try:
            replies.append(_read(message, weighted_by, sent))
        except (BadReply, BadArray) as problem:
            rejected.append(Rejection(node, str(problem)))
    rejected += [Rejection(node, "no reply", malformed=False) for node in unanswered.elements()]
    layouts = Counter(reply.layout for reply in replies)
    usual = layouts.most_common(1)[0][0] if layouts else ()
    rejected += [
        Rejection(r.node_id, _other_layout(r.layout, usual), by_comparison=True) for r in replies if r.layout != usual
    ]
    # Sorted, so that the order of arrival, which a peer can choose, decides nothing.
    kept = sorted((r for r in replies if r.layout == usual), key=lambda reply: reply.node_id)
    return kept, sorted(rejected, key=lambda each: each.node_id)


def _read(message: Message, weighted_by: str, sent: SentModel | None) -> Reply:
    metrics_name, metrics = only_record(message, MetricRecord)
    if weighted_by not in metrics:
        raise BadReply(f"metric {weighted_by!r} is missing")
    claim = metrics[weighted_by]
    examples = math.nan if isinstance(claim, list) else as_float(claim)
    if not (math.isfinite(examples) and examples > 0):
        shown = "a list" if isinstance(claim, list) else f"{examples:g}"
        raise BadReply(f"metric {weighted_by!r} is {shown}, must be a finite number > 0")
    if sent is None:
        return Reply(message, metrics_name, metrics, examples)
    arrays_name, record = only_record(message, ArrayRecord)
    arrays = sent.read(record)
    if problem := sent.fault(arrays):
        raise BadReply(problem)
    return Reply(message, metrics_name, metrics, examples, arrays_name, arrays)


def only_record(message: Message, kind: type[Record]) -> tuple[str, Record]:
    """The one record of this kind that the message holds, with its name. Raises BadReply if there is not just one."""
    found = [(name, record) for name, record in message.content.items() if isinstance(record, kind)]
    if len(found) != 1:
        raise BadReply(f"it holds {len(found)} {kind.__name__}s, must be 1")
    return found[0]


def _other_layout(layout: tuple[Any, ...], usual: tuple[Any, ...]) -> str:
    if layout[:2] != usual[:2]:
        own, others = (" and ".join(repr(name[:40]) for name in names[:2] if name) for names in (layout, usual))
        return f"its records are named {own}, most replies' {others}"
    odd = sorted({repr(name[:40]) for name, _ in set(layout[2]) ^ set(usual[2])})
    return f"its metrics differ from most replies' in {', '.join(odd[:3])}"


def as_float(value: float) -> float:
    """The number as a float; an int too large for one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def median_metrics(replies: Sequence[Reply], weighted_by: str) -> MetricRecord:
    """One record for all replies: the median of each metric over its finite values, and weight 1.

    Metrics are claims: with more than half of them honest, the median lies between honest values.
    """
    record = MetricRecord()
    for name, first in replies[0].metrics.items():
        values = [reply.metrics[name] for reply in replies]
        if name == weighted_by:
            record[name] = 1
        elif isinstance(first, list):
            record[name] = [_median(column) for column in zip(*values, strict=True)]
        else:
            record[name] = _median(values)  # type: ignore[arg-type]
    return record


def _median(values: Sequence[float]) -> float:
    finite = [number for number in map(as_float, values) if math.isfinite(number)]
    return float(np.median(finite)) if finite else math.nan
