"""Wrong data. Flower gives a mod no way to it, so the train function has to cooperate, for example with

labels = classes - 1 - labels                            if wants_label_flip(message)
x, y = poisoned_data.backdoor(x, y, target=0, ...)       if wants_backdoor(message)

`byzflow_attacks.poisoned_data` has functions for both.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message

from byzflow_flower.mods.who import ClientAppCallable, is_training

LABEL_FLIP, BACKDOOR = "label-flip", "backdoor"  # keys of the config record that ask for it


def label_flip(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Ask the train function to train on wrong labels: it must look at `wants_label_flip(message)`."""
    return call_next(_asking(message, LABEL_FLIP), context)


def backdoor(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Ask the train function to train on samples with a trigger: it must look at `wants_backdoor(message)`.

    With `send("model_replacement")` in front of it, the attack of Bagdasaryan et al., AISTATS 2020.
    """
    return call_next(_asking(message, BACKDOOR), context)


def wants_label_flip(message: Message) -> bool:
    """For train functions: whether the mod `label_flip` asks for wrong labels."""
    return _wanted(message, LABEL_FLIP)


def wants_backdoor(message: Message) -> bool:
    """For train functions: whether the mod `backdoor` asks for samples with a trigger."""
    return _wanted(message, BACKDOOR)


def _asking(message: Message, key: str) -> Message:
    if is_training(message):
        configs = [record for record in message.content.values() if isinstance(record, ConfigRecord)]
        if not configs:
            configs = [ConfigRecord()]
            message.content["config"] = configs[0]
        configs[0][key] = True
    return message


def _wanted(message: Message, key: str) -> bool:
    return any(isinstance(record, ConfigRecord) and record.get(key) is True for record in message.content.values())
