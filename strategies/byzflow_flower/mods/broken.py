"""Replies that are not what was asked for. Each of most of them ends a run of plain Flower."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from numpy.typing import NDArray

from byzflow.errors import UnknownOperator
from byzflow_flower.mods.who import ClientAppCallable, Mod, trained
from byzflow_flower.replies import only_record


def malformed(kind: str) -> Mod:
    """Train honestly, then break the reply; `kind` is one of MALFORMED, in which `-` reads as `_`.

    Raises SpecError for another kind.
    """
    mod = MALFORMED.get(kind.replace("-", "_"))
    if mod is None:
        raise UnknownOperator(kind, MALFORMED, "malformed reply")
    return mod


def _breaking(change: Callable[[Message], object]) -> Mod:
    def breaking(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if trained(reply):
            change(reply)
        return reply

    return breaking


def _arrays(change: Callable[[ArrayRecord], Mapping[str, Array]]) -> Mod:
    def replaced(reply: Message) -> None:
        name, record = only_record(reply, ArrayRecord)
        reply.content[name] = ArrayRecord(dict(change(record)))

    return _breaking(replaced)


def _values(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Mod:
    return _arrays(lambda record: {name: Array(change(array.numpy())) for name, array in record.items()})


def _bytes(change: Callable[[Array], bytes]) -> Mod:
    def changed(array: Array) -> Array:
        return Array(array.dtype, array.shape, array.stype, change(array))

    return _arrays(lambda record: {name: changed(array) for name, array in record.items()})


def _examples(claim: float) -> Mod:
    return _breaking(lambda reply: only_record(reply, MetricRecord)[1].update({"num-examples": claim}))


def _renamed(record: ArrayRecord) -> dict[str, Array]:
    (name, array), *others = record.items()
    return {f"{name}-of-another-model": array, **dict(others)}


def _objects(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, np.full(array.shape, None, dtype=object), allow_pickle=True)
    return file.getvalue()


wrong_keys = _arrays(_renamed)

MALFORMED: Mapping[str, Mod] = {
    "wrong_keys": wrong_keys,
    "no_arrays": _arrays(lambda record: {}),
    "extra_array": _arrays(lambda record: {**record, "extra": Array(np.zeros(1, np.float32))}),
    "wrong_shapes": _values(lambda values: np.append(values, 0).astype(values.dtype)),
    "integers": _values(lambda values: values.astype(np.int64)),
    "all_nan": _values(lambda values: values * np.nan if values.dtype.kind == "f" else values),
    "truncated": _bytes(lambda array: array.data[:-1]),
    "objects": _bytes(_objects),
    "no_metrics": _breaking(lambda reply: reply.content.pop(only_record(reply, MetricRecord)[0])),
    "extra_arrays": _breaking(lambda reply: reply.content.update({"extra": ArrayRecord({})})),
    "extra_metric": _breaking(lambda reply: only_record(reply, MetricRecord)[1].update({"extra": 1.0})),
    "zero_examples": _examples(0),
    "negative_examples": _examples(-1),
    "nan_examples": _examples(float("nan")),
}
