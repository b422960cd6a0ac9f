"""The model of a round, of which clients may send back a part only, such as LoRA's adapters beside frozen weights."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from flwr.app import ArrayRecord, Message


def model_in(messages: Sequence[Message]) -> ArrayRecord:
    """The one model that all messages carry. Raises ValueError if they carry several."""
    models = [r for message in messages for r in message.content.values() if isinstance(r, ArrayRecord)]
    if len(models) != len(messages) or any(each is not models[0] and each != models[0] for each in models):
        raise ValueError(
            "the wrapped strategy must send one model (ArrayRecord), the same to every node: updates to different "
            "models cannot be compared"
        )
    return models[0]


def trained(model: ArrayRecord, patterns: Sequence[str]) -> ArrayRecord:
    """The arrays whose names match one of the shell patterns. Raises ValueError if none does."""
    part = {name: array for name, array in model.items() if any(fnmatchcase(name, each) for each in patterns)}
    if model and not part:
        raise ValueError(f"trained={patterns} names none of the arrays sent: {', '.join(list(model)[:5])}, ...")
    return ArrayRecord(part)


def completed(part: ArrayRecord, sent_back: ArrayRecord, model: ArrayRecord) -> ArrayRecord:
    """The part that was trained, with all other arrays of the model as they were, in the model's order.

    Names that are not the model's stay as they are. `sent_back` has the names of the arrays that clients send back.
    """
    if len(sent_back) == len(model):
        return part
    frozen = {name: array for name, array in model.items() if name not in sent_back}
    ordered = {name: frozen.get(name) or part[name] for name in model if name in frozen or name in part}
    return ArrayRecord({**ordered, **{name: array for name, array in part.items() if name not in model}})
