"""Replies that look as they should and are lies."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord

import byzflow
from byzflow.errors import NotEnoughSenders, SpecError
from byzflow.spec import parse_attack
from byzflow_flower.mods.who import ClientAppCallable, Mod, is_training, partition, trained
from byzflow_flower.replies import only_record
from byzflow_flower.sent_model import SentModel

LAST_MODEL = "byzflow-free-rider"  # the record of the client's state in which a free rider keeps it


def send(attack: str) -> Mod:
    """Train honestly, then send what `attack` (a spec) makes of one's own update: an attack with h = f = 1.

    Random attacks draw anew for each round and partition, and the same in each run. model_replacement boosts by the
    number of clients, `num-partitions`, unless its scale is given. Raises SpecError for a spec that does not read, is
    no attack, or needs to know more than one's own update.
    """
    if not sends_alone(parse_attack(attack)):
        raise SpecError(f"{attack} needs to know more than its own update: use AttackedGrid")
    return _send(attack)


def sends_alone(attack: byzflow.Attack) -> bool:
    """Whether one attacker's own update is all that the attack needs."""
    try:
        attack.check(1)
    except NotEnoughSenders:
        return False
    return "against" not in attack.accepts


def _send(attack: str) -> Mod:
    # Parsed when first used: importing this file must not load every plugin.
    def sending(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if not is_training(message):
            return call_next(message, context)
        operator = parse_attack(attack)
        received = SentModel.of(only_record(message, ArrayRecord)[1])
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        name, record = only_record(reply, ArrayRecord)
        arrays = received.read(record)
        own = [received.update(arrays)]
        clients = int(context.node_config.get("num-partitions", 2))
        known: dict[str, Any] = {"round": _draw(message, context), "own": own, "honest": clients - 1}
        update = operator(own, **{k: v for k, v in known.items() if k in operator.accepts})[0]
        reply.content[name] = received.changed_by(update, {each: arrays[each] for each in received.buffers})
        return reply

    return sending


sign_flip = _send("sign_flip")
gaussian = _send("gaussian")
nan = _send("nan")


def free_rider(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Send the last change of the global model again instead of an update; in the first round, no change.

    The delta-weights attack of Lin, Du and Liu, 2019, https://arxiv.org/abs/1911.12560. The client trains all the same,
    for its metrics only. What it received is kept in the client's state.
    """
    if not is_training(message):
        return call_next(message, context)
    record = only_record(message, ArrayRecord)[1]
    received, last = SentModel.of(record), context.state.get(LAST_MODEL)
    before = received.read(last) if isinstance(last, ArrayRecord) else received.arrays
    change = {name: received.arrays[name] - before[name] for name in received.weights}
    context.state[LAST_MODEL] = ArrayRecord(dict(record))
    reply = call_next(message, context)
    if trained(reply):
        reply.content[only_record(reply, ArrayRecord)[0]] = received.changed_by(change, received.kept_buffers)
    return reply


def inflate_weight(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Claim `num-examples` = 1e12: under a mean weighted by claims, the own update becomes the model."""
    reply = call_next(message, context)
    if trained(reply):
        only_record(reply, MetricRecord)[1]["num-examples"] = 10**12
    return reply


def _draw(message: Message, context: Context) -> int:
    """A number of its own for each round and partition. Flower's strategies send the round in their config."""
    rounds = [
        r["server-round"] for r in message.content.values() if isinstance(r, ConfigRecord) and "server-round" in r
    ]
    return (int(rounds[0]) if rounds else 0) * 1_000_003 + partition(context)  # type: ignore[arg-type]
