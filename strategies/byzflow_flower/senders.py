"""Whether there are clients enough, said before anything is sent."""

from __future__ import annotations

from logging import WARNING, getLogger

from flwr.serverapp.strategy import Strategy

import byzflow
from byzflow.errors import NotEnoughSenders

log = getLogger("flwr").log  # Flower's own logger


def check_senders(
    operator: byzflow.Operator, f: int, asked: int, connected: int, strategy: Strategy, first: bool
) -> None:
    """Raise NotEnoughSenders in the first round if the operator is not valid for so many; later, warn.

    In the first round also warn of a minimum of the strategy's that would make Flower wait for ever.
    """
    try:
        operator.check(asked)
    except NotEnoughSenders as error:
        if first:
            why = f"{error.why}; sample more nodes (fraction_train, min_train_nodes) or lower f"
            raise NotEnoughSenders(error.operator, error.needed, error.given, why) from None
        log(WARNING, "configure_train: %s; the model will be kept unless f shrinks", error)
    sure = max(0, connected - f)
    for name in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
        minimum = getattr(strategy, name, 0)
        if minimum > sure and first:
            log(
                WARNING,
                "configure_train: %s=%d, but with f=%d only %d of the %d nodes are sure to stay, and Flower waits "
                "without limit for one that leaves; lower %s",
                *(name, minimum, f, sure, connected, name),
            )
