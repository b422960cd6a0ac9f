"""Which clients lie, and what every mod has to know of a message."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message

from byzflow_flower.attacked_grid import PARTITION_RECORD

# As in flwr.clientapp.typing, which flwr 1.28 does not have.
ClientAppCallable = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, ClientAppCallable], Message]


def byzantine(mod: Mod, f: int | str) -> Mod:
    """The mod, for the clients with partition id 0 to f - 1 only; `f` may name a key of the run-config.

    Raises ValueError (an error reply) in a client whose node-config has no `partition-id`.
    """

    def limited(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        bound = f if isinstance(f, int) else int(context.run_config[f])
        lies = partition(context) < bound
        return mod(message, context, call_next) if lies else call_next(message, context)

    return limited


def reveal_partition(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Send along which partition this client holds, for `first_partitions`: an extra record, which Flower allows."""
    reply = call_next(message, context)
    if trained(reply):
        reply.content[PARTITION_RECORD] = ConfigRecord({"partition-id": partition(context)})
    return reply


def partition(context: Context) -> int:
    """The client's `partition-id`. Raises ValueError if its node-config has none."""
    if "partition-id" not in context.node_config:
        raise ValueError("this node's config has no partition-id: start it with --node-config 'partition-id=0'")
    return int(context.node_config["partition-id"])


def is_training(message: Message) -> bool:
    """Whether a message, or a reply, is one of training."""
    return message.metadata.message_type.split(".")[0] == "train"


def trained(reply: Message) -> bool:
    """Whether a reply is the result of a training, and no error."""
    return reply.has_content() and is_training(reply)
