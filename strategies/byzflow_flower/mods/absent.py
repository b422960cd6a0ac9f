"""Replies that come late, or never."""

from __future__ import annotations

import time

from flwr.app import Context, Message

from byzflow_flower.mods.who import ClientAppCallable, Mod, trained

BEYOND = 3660.0  # seconds; a minute more than Flower waits for replies, unless told otherwise


def slow(seconds: float) -> Mod:
    """Train honestly, and send the reply so much (>= 0) later. Beyond the strategy's timeout it does not count."""
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"seconds must be a number >= 0, got {seconds}")

    def waiting(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if trained(reply):
            time.sleep(seconds)
        return reply

    return waiting


def silent(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Say nothing for longer than Flower waits by default. It blocks `LocalGrid`, which waits for every client."""
    return slow(BEYOND)(message, context, call_next)


def crash(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Raise RuntimeError after training: Flower makes an error reply of it."""
    reply = call_next(message, context)
    if trained(reply):
        raise RuntimeError("this client crashes on purpose")
    return reply
