"""Where a federation's numbers go: a CSV file, JSON lines, a function; each is a sink of `Federation(sinks=...)`."""

from __future__ import annotations

import csv
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO

import msgspec

from byzflow.errors import SpecError
from byzflow.federation.federation import Federation
from byzflow.federation.report import RoundReport

COUNTS = ("connected", "rejected", "missing", "errors")


def metrics_of(report: RoundReport) -> dict[str, float]:
    """A round as plain numbers: round (from 1), seconds, how many were connected, rejected, missing and failed, and
    the metrics of the nodes that evaluated."""
    counts = {name: len(getattr(report, name)) for name in COUNTS}
    return {"round": report.round + 1, "seconds": report.seconds, **counts, **report.metrics}


class CsvFile:
    """A line for each round; a metric that a round does not have is left empty.

    `metrics` are the columns beside round, seconds and the counts. Of a file that is there the first `done` rounds
    stay, for a run that goes on after them. Raises SpecError for a file that cannot be written or is of another kind.
    """

    def __init__(self, path: str | Path, metrics: Sequence[str] = ("accuracy", "loss"), done: int = 0) -> None:
        self._file = _opened(path, done, _csv_round)
        columns = ("round", "seconds", *COUNTS, *metrics)
        self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore", lineterminator="\n")
        if not self._file.tell():
            self._writer.writeheader()

    def __call__(self, report: RoundReport) -> None:
        """Write it, so that it is there if the next round fails."""
        self._writer.writerow(metrics_of(report))
        self._file.flush()

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()


class JsonLines:
    """The whole report of each round as a line of JSON, weights and reasons included; NaN and Inf are null.

    `done` and SpecError as in `CsvFile`.
    """

    def __init__(self, path: str | Path, done: int = 0) -> None:
        self._file = _opened(path, done, _json_round)

    def __call__(self, report: RoundReport) -> None:
        """Write it, so that it is there if the next round fails."""
        self._file.write(msgspec.json.encode(report.as_dict()).decode() + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()


class LogMetrics:
    """Gives each round's numbers, see `metrics_of`, to a function such as a database client's or a node's
    `log_metrics`."""

    def __init__(self, log_metrics: Callable[[Mapping[str, float]], Any]) -> None:
        self.log_metrics = log_metrics

    def __call__(self, report: RoundReport) -> None:
        """Call the function."""
        self.log_metrics(metrics_of(report))

    def close(self) -> None:
        """Nothing is open."""


def file_sink(path: str | Path, done: int = 0) -> CsvFile | JsonLines:
    """The sink of a file name that ends in .csv or .jsonl; SpecError for others."""
    return sink_of(path)(path, done=done)


def sink_of(path: str | Path) -> type[CsvFile] | type[JsonLines]:
    """Which sink `file_sink` makes; it touches no file."""
    kind: type[CsvFile] | type[JsonLines] | None
    kind = {".csv": CsvFile, ".jsonl": JsonLines}.get(Path(path).suffix.lower())
    if kind is None:
        raise SpecError(f"{path} must end in .csv or .jsonl")
    return kind


class Monitor:
    """What a federation and its process are doing, now and since the monitor was made."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self._began, self._cpu = time.perf_counter(), time.process_time()
        self._sent = federation.network.traffic.sent

    def collect_federation_metrics(self) -> dict[str, Any]:
        """active_nodes, resource_utilization (cpus in use, bytes of memory at most) and message_throughput: messages
        sent, delivered and refused in all, and sent a second."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        traffic = self.federation.network.traffic
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "active_nodes": sum(not member.lost for member in self.federation.members.values()),
            "resource_utilization": {
                "cpus": (time.process_time() - self._cpu) / seconds,
                "memory": peak * (1 if sys.platform == "darwin" else 1024),
            },
            "message_throughput": {
                "sent": traffic.sent,
                "delivered": traffic.delivered,
                "refused": traffic.refused,
                "per_second": (traffic.sent - self._sent) / seconds,
            },
        }


def _opened(path: str | Path, done: int, round_of: Callable[[bytes], int]) -> TextIO:
    """The file to append to, with nothing in it but whole lines of rounds before `done`."""
    path = Path(path)
    try:
        if done and path.exists():
            with path.open("rb+") as file:
                file.truncate(
                    sum(map(len, takewhile(lambda line: line.endswith(b"\n") and round_of(line) < done, file)))
                )
        return path.open("a" if done else "w", encoding="utf-8", newline="")
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, msgspec.MsgspecError):
        raise SpecError(f"{path} holds something else than the rounds of a run: take another file") from None


def _csv_round(line: bytes) -> int:
    """The round, from 0, of a line of `CsvFile`; -1 of its head."""
    first = line.partition(b",")[0]
    return -1 if first == b"round" else int(first) - 1


def _json_round(line: bytes) -> int:
    """The round, from 0, of a line of `JsonLines`."""
    return int(msgspec.json.decode(line)["round"])
