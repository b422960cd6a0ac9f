"""Sinks: CSV, JSON lines, a function; and the two samples of monitoring that Red's overview shows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from byzflow.errors import SpecError
from byzflow.federation.report import History, RoundReport
from byzflow.federation.sinks import CsvFile, JsonLines, LogMetrics, Monitor, file_sink
from byzflow.federation.summary import summary
from tests.federation.test_schemas import small

REPORTS = (
    RoundReport(0, 0.5, (0, 1, 2), {"accuracy": 0.25}, {0: 0.5, 1: 0.5, 2: 0.0}, {2: "NaN or Inf"}),
    RoundReport(1, 1.5, (0, 1), {}, {0: 0.75, 1: 0.25}, {}, (2,), {1: "ValueError: no"}, {"a": (0,), "b": (1,)}),
)


def test_a_csv_has_a_line_a_round(tmp_path: Path) -> None:
    sink = CsvFile(tmp_path / "m.csv")
    for report in REPORTS:
        sink(report)
    rows = list(csv.DictReader((tmp_path / "m.csv").read_text().splitlines()))  # not closed: a crash loses nothing
    sink.close()
    sink.close()
    assert [row["round"] for row in rows] == ["1", "2"]
    assert (rows[0]["accuracy"], rows[0]["rejected"], rows[0]["loss"]) == ("0.25", "1", "")
    assert (rows[1]["accuracy"], rows[1]["missing"], rows[1]["errors"]) == ("", "1", "1")


def test_json_lines_hold_the_whole_report(tmp_path: Path) -> None:
    sink = file_sink(tmp_path / "m.jsonl")
    assert isinstance(sink, JsonLines)
    for report in REPORTS:
        sink(report)
    sink.close()
    first, second = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert first["rejected"] == {"2": "NaN or Inf"}
    assert second["weights"] == {"0": 0.75, "1": 0.25}


def test_a_file_of_another_kind_or_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"must end in \.csv or \.jsonl"):
        file_sink(tmp_path / "m.txt")
    with pytest.raises(SpecError, match="cannot be written"):
        file_sink(tmp_path / "none" / "m.csv")


def test_a_function_gets_each_round_s_numbers() -> None:
    stored: list[tuple[str, Any]] = []

    class Node:
        """As Red's DatabaseIntegratedNode."""

        id = "node_1"

        def log_metrics(self, metrics: Any) -> None:
            stored.append((self.id, metrics))

    from byzflow.federation import schemas

    federation = schemas.star(small("star"))
    federation.sinks = (LogMetrics(Node().log_metrics),)
    federation.train(2)
    assert [(who, metrics["round"], metrics["connected"]) for who, metrics in stored] == [
        ("node_1", 1, 6),
        ("node_1", 2, 6),
    ]
    assert 0 <= stored[-1][1]["accuracy"] <= 1


def test_a_monitor_collects_what_red_s_monitored_federation_does() -> None:
    from byzflow.federation import schemas

    federation = schemas.mesh(small("mesh"))
    monitor = Monitor(federation)
    assert monitor.collect_federation_metrics()["message_throughput"]["sent"] == 0
    federation.train(2)
    found = monitor.collect_federation_metrics()
    assert found["active_nodes"] == 6
    assert found["message_throughput"]["delivered"] == 2 * 6 * 5
    assert found["message_throughput"]["per_second"] > 0
    assert found["resource_utilization"]["memory"] > 1e6


def test_the_summary_tells_who_moved_the_model_and_who_was_refused() -> None:
    history = History()
    history.rounds.extend(REPORTS)
    found = summary(history, {1})
    assert found.metrics == {"accuracy": 0.25}
    assert (found.honest_weight, found.byzantine_weight) == (0.625, 0.375)
    assert found.heaviest == (0, 0.625)
    assert (found.rejected, found.missing, found.errors) == ({2: 1}, {2: 1}, {1: 1})
    assert found.digests_equal is False
    assert found.seconds_per_round == 1.0
    text = "\n".join(found.lines())
    assert "rejected: 2 1x (NaN or Inf)" in text
    assert "models differed" in text
    json.dumps(found.as_dict())


def test_a_summary_of_nothing_is_one() -> None:
    found = summary(History())
    assert (found.rounds, found.honest_weight, found.digests_equal) == (0, None, None)


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_run_that_goes_on_keeps_the_lines_of_the_rounds_that_are_done(tmp_path: Path, name: str) -> None:
    file = tmp_path / name

    def write(reports: Iterable[RoundReport], done: int = 0) -> bytes:
        with closing(file_sink(file, done)) as sink:
            for report in reports:
                sink(report)
        return file.read_bytes()

    rounds = [RoundReport(k, 0.5, (0, 1), {"accuracy": k / 10}) for k in range(12)]
    whole = write(rounds)
    for done in (1, 9, 12):
        file.write_bytes(whole[:-3])  # torn by a crash
        assert write(rounds[done:] if done < 12 else rounds[11:], done) == whole
    file.unlink()
    assert write(rounds[3:], 3) == b"".join(whole.splitlines(keepends=True)[k] for k in kept(name))
    assert write(rounds) == whole  # a new run begins anew
    file.write_bytes(b"something else\n")
    with pytest.raises(SpecError, match="holds something else than the rounds of a run"):
        file_sink(file, 3)
    assert file.read_bytes() == b"something else\n"


def kept(name: str) -> list[int]:
    """The places of the lines of rounds 3 to 11 and of the head, if there is one."""
    return [0, *range(4, 13)] if name == "m.csv" else list(range(3, 12))
