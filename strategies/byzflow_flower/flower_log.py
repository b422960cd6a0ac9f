"""A user's mistake as one line of Flower's log instead of a traceback."""

from __future__ import annotations

from logging import LogRecord, getLogger

from byzflow.errors import ByzflowError


def plain_errors() -> None:
    """Call it at the top of a ServerApp's main: an error that byzflow raises on purpose is logged in one line.

    Flower logs what an app raises with the whole traceback. For a wrong spec, or too few nodes for f, only the last
    line of it tells anything. The run fails as before, with the same line as its details in `flwr list`; every other
    exception keeps its traceback. Calling it again changes nothing.
    """
    getLogger("flwr").addFilter(_without_traceback)


def _without_traceback(record: LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ByzflowError):
        record.msg, record.args = "%s", (" ".join(str(error).split()),)
        record.exc_info = None
    return True
