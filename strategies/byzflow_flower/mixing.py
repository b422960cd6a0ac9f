"""The client's part of relayed gossip: mix the own model with the neighbours', by the same robust chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

import byzflow
from byzflow.attendance import copies_for, shrunk_for
from byzflow.errors import NotEnoughSenders, RowsError
from byzflow_flower.audit import Rejection
from byzflow_flower.buffers import median_buffers
from byzflow_flower.npy import BadArray
from byzflow_flower.sent_model import BATCH_NORM, Arrays, SentModel, not_finite

OWN = "arrays"  # the record with the own model, in the message and in the reply
PEER = "peer/"  # before a neighbour's node id: the record with its model
CONFIG = "config"
NEIGHBOURS = "neighbours"  # how many there are, heard or not
REPORT = "gossip"  # the record that says who was dropped, and why
DROPPED, KEPT_MODEL = "dropped", "kept-model"


def gossip_client(app: ClientApp, spec: str | byzflow.Operator, f: int | None = None) -> None:
    """Let an app take part in `GossipStrategy`: mount `mix` for its messages. The app's `train` stays as it is.

        app = ClientApp()
        gossip_client(app, "nnm | trimmed_mean", f=1)

    `f` Byzantine neighbours are borne, of those that a node has. Raises ValueError if it is mounted already.
    """

    @app.query("mix")
    def mix_neighbours(message: Message, context: Context) -> Message:
        return mix(message, byzflow.parse(spec, f=f))  # when used: importing an app must not load every plugin


def mix(message: Message, operator: byzflow.Operator, buffer_names: Sequence[str] = BATCH_NORM) -> Message:
    """The reply to a message with the own model and the neighbours': the own one, moved by the rule's result.

    The rows are the n = 1 + neighbours models minus the own one, so the own row is zero and a rule that looks at
    norms looks at distances from it. A neighbour's model of other keys, shapes or dtypes, of unreadable bytes, or
    with NaN or Inf is dropped and named, and uses up one of f; for those that were not heard the own row stands as
    far as the rule would be invalid without. With too few left the own model stays, and the reply says why. Rules that
    remember start anew at each call.

    Raises NotEnoughSenders if the node has too few neighbours for the rule, RowsError if the own model holds NaN or
    Inf: error replies, which the server logs.
    """
    own = SentModel.of(message.content.array_records[OWN], buffer_names)
    if problem := not_finite(own.arrays):
        raise RowsError(f"the own model cannot be mixed: {problem}")
    claimed = message.content.config_records[CONFIG][NEIGHBOURS]
    heard = {
        int(name.removeprefix(PEER)): record
        for name, record in message.content.array_records.items()
        if name.startswith(PEER)
    }
    neighbours = max(len(heard), int(claimed)) if isinstance(claimed, int) else len(heard)
    operator.check(1 + neighbours)
    peers, dropped = read_models(own, heard)
    itself = Model(own.arrays, {name: np.zeros_like(own.arrays[name]) for name in own.weights})
    models = [itself, *peers.values()]
    kept_model = ""
    try:
        copies = copies_for(operator, operator.declared, len(models), len(dropped), neighbours - len(heard))
        rows = [each.update for each in [*models, *copies * [itself]]]
        update = shrunk_for(operator, len(rows), len(dropped), 0).explain(rows).value
    except (NotEnoughSenders, RowsError) as problem_:
        models, update, kept_model = [itself], itself.update, str(problem_)
    report = ConfigRecord({DROPPED: [f"{each.node_id} {each.reason}" for each in dropped], KEPT_MODEL: kept_model})
    mixed = own.changed_by(update, median_buffers(own, models))
    return Message(RecordDict({OWN: mixed, REPORT: report}), reply_to=message)


@dataclass(frozen=True)
class Model:
    """A model: its arrays, and what its weights are more than a reference's."""

    arrays: Arrays
    update: Arrays


def read_models(reference: SentModel, records: Mapping[int, ArrayRecord]) -> tuple[dict[int, Model], list[Rejection]]:
    """The models of some nodes, by node id, and the nodes whose models are malformed or hold NaN or Inf."""
    models: dict[int, Model] = {}
    bad: list[Rejection] = []
    for node, record in sorted(records.items()):
        try:
            arrays = reference.read(record)
        except BadArray as problem:
            bad.append(Rejection(node, str(problem)))
            continue
        model = Model(arrays, reference.update(arrays))
        if fault := not_finite(model.update) or not_finite(arrays):
            bad.append(Rejection(node, fault))
        else:
            models[node] = model
    return models, bad


def dropped_by(message: Message, neighbours: Sequence[int]) -> tuple[list[Rejection], str]:
    """What a reply of `mix` says: the neighbours that were dropped, and why the own model stayed, if it did.

    It is the client's claim: only neighbours of it count, each once.
    """
    report: Any = message.content.config_records.get(REPORT, {})
    lines, kept_model = report.get(DROPPED, []), report.get(KEPT_MODEL, "")
    named: dict[int, Rejection] = {}
    for line in lines[: len(neighbours)] if isinstance(lines, list) else []:
        node, _, reason = str(line)[:1000].partition(" ")
        if node.isdecimal() and len(node) <= 20 and int(node) in neighbours:
            named[int(node)] = Rejection(int(node), reason)
    return list(named.values()), Rejection(0, str(kept_model)[:1000]).reason  # one printable line
