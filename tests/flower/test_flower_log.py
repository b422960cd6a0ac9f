"""A user's mistake is one line of Flower's log; every other error keeps its traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from byzflow.errors import SpecError
from byzflow_flower import plain_errors

flower = logging.getLogger("flwr")


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(logging.Formatter().format(record))  # type: ignore[method-assign]
    filters, flower.filters[:] = list(flower.filters), []
    flower.addHandler(handler)
    yield lines
    flower.removeHandler(handler)
    flower.filters[:] = filters


def raise_and_log(error: Exception) -> None:
    try:
        raise error
    except Exception as caught:
        flower.log(logging.ERROR, "%s raised an exception", "ServerApp", exc_info=caught)


def test_what_byzflow_raises_is_one_line(said: list[str]) -> None:
    raise_and_log(SpecError("f is odd"))
    assert "Traceback" in said.pop()
    plain_errors()
    plain_errors()
    raise_and_log(SpecError("f is odd:\n 100%s of it"))
    assert said == ["f is odd: 100%s of it"]


def test_other_errors_keep_their_traceback(said: list[str]) -> None:
    plain_errors()
    raise_and_log(ValueError("not ours"))
    assert "Traceback" in said[0]
    assert said[0].endswith("ValueError: not ours")
    flower.log(logging.ERROR, "no exception at all")
    assert said[1] == "no exception at all"
