"""`python -m benchmarks.report FILE`: the tables of the README and the docs, and the goals, from a run's JSON.

--readme   the short table
--goals    each goal, the worst figure that it is judged by, and whether it is met
(neither)  every table
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]
LIBRARIES = {"byzfl": "ByzFL", "byzpy": "ByzPy", "flower": "Flower", "flower app": "Flower, Message API"}
README_SHAPE = (10, 1_000_000)
README_RULES = (
    *("median", "trimmed_mean", "meamed", "krum", "multi_krum", "geometric_median", "centered_clipping", "caf", "smea"),
    *("nnm", "nnm | trimmed_mean", "arc | nnm | geometric_median"),
)
COLUMN_RULES = ("median", "trimmed_mean", "meamed", "phocas")
OTHERWISE = "≠"
NONE = "-"


class Table(NamedTuple):
    """A title, a head, and lines of text."""

    title: str
    head: list[str]
    lines: list[list[str]]


# ---- figures


def median(workload: Record, name: str) -> float | None:
    """Median seconds of a contestant or yardstick."""
    return workload["contestants"].get(name, {}).get("median")


def to_read(workload: Record) -> float | None:
    """Our time, relative to reading the rows once."""
    return _ratio(median(workload, "byzflow"), median(workload, "read"))


def passes(workload: Record) -> tuple[float | None, str]:
    """Seconds of the passes that the rule is made of, each measured on its own, and which they are."""
    parts = {
        "column": ("read",),
        "span": ("gram", "read"),
        "span with a column pivot": ("network", "gram", "read"),
        "rows out": ("gram", "mix"),
        "span and column": ("gram", "mix", "network"),
    }.get(workload["kind"], ())
    seconds = [median(workload, part) for part in parts]
    known = [each for each in seconds if each is not None]
    return (sum(known) if parts and len(known) == len(parts) else None), " + ".join(parts)


def fastest_peer(workload: Record) -> tuple[float, str] | None:
    """The fastest other library, also where it computes something else; None if none ran."""
    times = {name: median(workload, name) for name in LIBRARIES}
    found = [(seconds, name) for name, seconds in times.items() if seconds is not None]
    return min(found) if found else None


def speed_up(workload: Record) -> float | None:
    """How many times faster than the fastest peer."""
    peer = fastest_peer(workload)
    return None if peer is None else _ratio(peer[0], median(workload, "byzflow"))


def extra(workload: Record, name: str) -> float | None:
    """Peak extra memory besides the result, relative to the input."""
    found = workload["contestants"].get(name, {}).get("extra_bytes")
    return None if found is None else found / workload["input_bytes"]


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


# ---- tables


def milliseconds(seconds: float | None) -> str:
    """Two or three digits."""
    if seconds is None:
        return NONE
    ms = 1e3 * seconds
    return f"{ms:,.0f}" if ms >= 20 else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}"


def _times(ratio: float | None) -> str:
    return (
        NONE
        if ratio is None
        else f"{ratio:,.0f}x"
        if ratio >= 20
        else f"{ratio:.1f}x"
        if ratio >= 3
        else f"{ratio:.2f}x"
    )


def _cell(workload: Record, name: str) -> str:
    """Milliseconds and [extra memory as a multiple of the input], or why there are none."""
    result = workload["contestants"].get(name)
    if result is None:
        return NONE
    if result["state"] != "ok":
        return {"not valid": "not valid for n", "failed": "fails"}.get(result["state"], result["state"]) + (
            f" ({result['detail']})" if result["state"] == "does not fit" else ""
        )
    memory = extra(workload, name)
    text = milliseconds(result.get("median")) + (f" [{memory:.1f}]" if memory is not None else "")
    return f"{text} {OTHERWISE}" if result.get("agrees") is False else text


def _mine(workload: Record) -> str:
    result = workload["contestants"].get("byzflow", {"state": "not run"})
    if "median" not in result:
        return _cell(workload, "byzflow")
    half = (result["q3"] - result["q1"]) / 2
    return f"{milliseconds(result['median'])} ± {milliseconds(half)}"


def _line(workload: Record, libraries: Iterable[str]) -> list[str]:
    limit, _ = passes(workload)
    memory = extra(workload, "byzflow")
    return [
        workload["name"],
        _mine(workload),
        _times(to_read(workload)),
        _times(_ratio(median(workload, "byzflow"), limit)),
        NONE if memory is None else f"{memory:.3f}",
        *(_cell(workload, name) for name in libraries),
        _times(speed_up(workload)),
    ]


def _shape(workload: Record) -> tuple[int, int, int]:
    return workload["n"], workload["d"], workload.get("leaves", 8)


def shape_tables(record: Record, group: str = "operators") -> Iterator[Table]:
    """A table a shape."""
    workloads = [w for w in record["workloads"] if w["group"] == group]
    for n, d, leaves in dict.fromkeys(map(_shape, workloads)):
        found = [w for w in workloads if _shape(w) == (n, d, leaves)]
        libraries = [name for name in LIBRARIES if any(name in w["contestants"] for w in found)]
        head = ["rule", "byzflow, ms", "x read", "x passes", "extra", *(LIBRARIES[name] for name in libraries)]
        title = f"n = {n}, d = {d:,}, {found[0]['input_bytes'] / 1e6:,.0f} MB"
        reads = [seconds for w in found if (seconds := median(w, "read")) is not None]
        if reads:
            title += f"; reading the rows once takes {milliseconds(sorted(reads)[len(reads) // 2])} ms"
        if group == "flower":
            title = f"A Flower server's step, replies to model in {leaves} arrays: {title}"
        yield Table(title, [*head, "ahead of the fastest"], [_line(w, libraries) for w in found])


def byzpy_table(record: Record) -> Iterator[Table]:
    """ByzPy's own list."""
    found = [w for w in record["workloads"] if w["group"] == "byzpy"]
    if found:
        lines = [
            [
                w["name"] + ("" if w["listed"] else " (a script, not in the list)"),
                f"{w['n']} x {w['d']:,}" + (f", f={w['f']}" if w["f"] else ""),
                _mine(w),
                _cell(w, "byzpy"),
                _times(speed_up(w)),
            ]
            for w in found
        ]
        yield Table("ByzPy's own list", ["workload", "shape", "byzflow, ms", "ByzPy", "ahead"], lines)


def thread_tables(record: Record) -> Iterator[Table]:
    """Each kernel on one and on two threads."""
    for run in record["threads"]:
        read = run["kernels"].get("read 1", {}).get("median")
        lines = []
        for name in _kernel_names(run):
            one, two = (run["kernels"][f"{name} {count}"]["median"] for count in (1, 2))
            lines.append([name, milliseconds(one), milliseconds(two), _times(one / two), _times(_ratio(one, read))])
        head = ["kernel", "1 thread, ms", "2 threads, ms", "gain", "1 thread, x read"]
        yield Table(f"Threads: n = {run['n']}, d = {run['d']:,}", head, lines)


def _kernel_names(run: Record) -> list[str]:
    return [name.removesuffix(" 1") for name in run["kernels"] if name.endswith(" 1") and name != "read 1"]


def growth_table(record: Record) -> Iterator[Table]:
    """The fitted slopes."""
    from benchmarks.plot import LARGE, lines, slope

    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for group, large in LARGE.items():
        for key, points in lines(record, group).items():
            found.setdefault(key, {})[group] = slope(points, large)
    if found:
        text = [
            [" ".join(filter(None, (name, rule))), *(_number(slopes.get(group)) for group in LARGE)]
            for (rule, name), slopes in found.items()
        ]
        head = ["", *(f"by {group[-1]}, from {large:,}" for group, large in LARGE.items())]
        yield Table("Growth: exponents fitted to the times", head, text)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def readme_table(record: Record) -> Iterator[Table]:
    """The short table."""
    by_name = {
        w["name"]: w for w in record["workloads"] if w["group"] == "operators" and (w["n"], w["d"]) == README_SHAPE
    }
    found = [by_name[name] for name in README_RULES if name in by_name]
    lines = [
        [
            f"`{_escaped(w['name'])}`",
            milliseconds(median(w, "byzflow")),
            *(_cell(w, name) for name in ("byzfl", "byzpy")),
            _cell(w, min(("flower", "flower app"), key=lambda name: median(w, name) or float("inf"))),
            _times(speed_up(w)),
            _times(to_read(w)),
        ]
        for w in found
    ]
    head = ["", "byzflow, ms", "ByzFL", "ByzPy", "Flower", "ahead of the fastest", "times one read of the rows"]
    yield Table(f"n = {README_SHAPE[0]}, d = {README_SHAPE[1]:,}", head, lines)


def differences(record: Record) -> Iterator[Table]:
    """Peers whose result is another."""
    lines = []
    for w in record["workloads"]:
        for name, result in w["contestants"].items():
            if result.get("agrees") is False or result.get("changes_input"):
                gap = result.get("difference")
                note = "changes its input" if result.get("changes_input") else f"{gap:.1e}"
                lines.append([w["name"], f"{w['n']} x {w['d']:,}", LIBRARIES.get(name, name), note, result["same_as"]])
    if lines:
        head = ["rule", "shape", "library", "relative difference", "compared with"]
        yield Table(f"Results that differ ({OTHERWISE} above)", head, lines)


def problems(record: Record) -> Iterator[Table]:
    """What did not run, and why."""
    lines = [
        [w["name"], f"{w['n']} x {w['d']:,}", LIBRARIES.get(name, name), result["state"], result["detail"]]
        for w in record["workloads"]
        for name, result in w["contestants"].items()
        if result["state"] not in ("ok", "not valid")
    ]
    lines += [
        [w["name"], f"{w['n']} x {w['d']:,}", "", "", w["problem"]] for w in record["workloads"] if "problem" in w
    ]
    if lines:
        yield Table("What did not run", ["rule", "shape", "library", "", "why"], lines)


def tables(record: Record) -> Iterator[Table]:
    """All of them."""
    yield from shape_tables(record)
    yield from byzpy_table(record)
    yield from shape_tables(record, "flower")
    yield from thread_tables(record)
    yield from growth_table(record)
    yield from differences(record)
    yield from problems(record)
    yield goals(record)


# ---- goals


class Figure(NamedTuple):
    """A measured figure, and what it belongs to."""

    value: float
    where: str


def goals(record: Record) -> Table:
    """Each goal with the worst figure and the number of figures that meet it."""
    rules = [w for w in record["workloads"] if w["group"] == "operators"]
    column = [w for w in rules if w["name"] in COLUMN_RULES and w["n"] <= 32]
    span = [w for w in rules if w["kind"] in ("span", "span with a column pivot", "rows out")]
    first = [w for w in rules if (w["n"], w["d"]) == README_SHAPE]
    lines = [
        _goal("column rules, n <= 32: time of one read", 1.5, _figures(column, to_read)),
        _goal("column rules, n <= 32: ahead of the fastest peer", 30, _figures(column, speed_up), least=True),
        _goal("span rules and chains: Gram pass + one read", 1.3, _figures(span, _to_passes)),
        _goal("the same: 100 steps of centred clipping, to 10", 1.3, _steps(rules)),
        _goal(
            "span rules and chains, n=10, d=1e6: ahead of the fastest peer",
            8,
            _figures([w for w in first if w in span], speed_up),
            least=True,
        ),
        _goal(
            "chains ending in a column rule: Gram + mixing + network",
            1.3,
            _figures([w for w in rules if w["kind"] == "span and column"], _to_passes),
        ),
        _goal("peak extra memory, of the input", 0.1, _figures(rules, lambda w: extra(w, "byzflow"))),
        _goal("two threads, kernels above 1.5 reads: gain", 1.7, _gains(record), least=True),
        _goal("growth by d: exponent", 1.05, _exponents(record, "growth-d")),
        _goal("growth by n: exponent", 2.05, _exponents(record, "growth-n")),
        _goal("Gram pass, to the float64 product of a stacked copy", 1.0, _to_product(record)),
        _goal("ByzPy's own list: ahead", 1.0, _byzpy_lead(record), least=True),
        _goal(
            "Flower server round, 20 x 3 M: seconds", 0.35, _figures(_rounds(record), lambda w: median(w, "byzflow"))
        ),
        _goal("the same: extra MB besides the replies", 60, _figures(_rounds(record), _megabytes)),
    ]
    return Table("Goals", ["goal", "bound", "met", "worst", "where"], lines)


def _goal(what: str, bound: float, figures: Sequence[Figure], least: bool = False) -> list[str]:
    sign = ">=" if least else "<="
    if not figures:
        return [what, f"{sign} {bound:g}", "not measured", NONE, NONE]
    met = [each for each in figures if (each.value >= bound if least else each.value <= bound)]
    worst = min(figures) if least else max(figures)
    state = "yes" if len(met) == len(figures) else f"{len(met)} of {len(figures)}"
    return [what, f"{sign} {bound:g}", state, f"{worst.value:.3g}", worst.where]


def _figures(workloads: Iterable[Record], value: Callable[[Record], float | None]) -> list[Figure]:
    pairs = [(value(w), w) for w in workloads]
    return [Figure(found, f"{w['name']}, {_where(w)}") for found, w in pairs if found is not None]


def _where(workload: Record) -> str:
    n, d, leaves = _shape(workload)
    return f"{n} x {d:,}" + (f" in {leaves} arrays" if workload["group"] == "flower" else "")


def _to_passes(workload: Record) -> float | None:
    return _ratio(median(workload, "byzflow"), passes(workload)[0])


def _steps(rules: Sequence[Record]) -> list[Figure]:
    ten = {(w["n"], w["d"]): median(w, "byzflow") for w in rules if w["name"] == "centered_clipping"}
    many = [w for w in rules if w["name"] == "centered_clipping, 100 steps"]
    return _figures(many, lambda w: _ratio(median(w, "byzflow"), ten.get((w["n"], w["d"]))))


def _gains(record: Record) -> list[Figure]:
    found = []
    for run in record["threads"]:
        read = run["kernels"].get("read 1", {}).get("median", 0)
        for name in _kernel_names(run):
            one, two = (run["kernels"][f"{name} {count}"]["median"] for count in (1, 2))
            if one > 1.5 * read:
                found.append(Figure(one / two, f"{name}, {run['n']} x {run['d']:,}"))
    return found


def _exponents(record: Record, group: str) -> list[Figure]:
    from benchmarks.plot import LARGE, lines, slope

    slopes = {rule: slope(p, LARGE[group]) for (rule, name), p in lines(record, group).items() if name == "byzflow"}
    return [Figure(value, rule) for rule, value in slopes.items() if value is not None]


def _to_product(record: Record) -> list[Figure]:
    found = [w for w in record["workloads"] if w["group"] == "growth-n" and w["n"] >= 32]
    return _figures(found, lambda w: _ratio(median(w, "gram"), median(w, "gemm float64")))


def _byzpy_lead(record: Record) -> list[Figure]:
    return _figures([w for w in record["workloads"] if w["group"] == "byzpy" and w["listed"]], speed_up)


def _rounds(record: Record) -> list[Record]:
    return [w for w in record["workloads"] if w["group"] == "flower"]


def _megabytes(workload: Record) -> float | None:
    found = workload["contestants"].get("byzflow", {}).get("extra_bytes")
    return None if found is None else found / 1e6


# ---- output


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def markdown(table: Table) -> str:
    """The table, with its title above."""
    rows = [
        table.head,
        ["---"] * len(table.head),
        *([cell if "`" in cell else _escaped(cell) for cell in line] for line in table.lines),
    ]
    return "\n".join([f"**{table.title}**", "", *("| " + " | ".join(row) + " |" for row in rows), ""])


def merged(records: Sequence[Record]) -> Record:
    """One record of several runs: each workload as the last run measured it, in the order of the first."""
    kept = ("group", "name", "spec", "n", "d", "leaves")
    workloads = {tuple(w.get(key) for key in kept): w for record in records for w in record["workloads"]}
    threads = {(each["n"], each["d"]): each for record in records for each in record["threads"]}
    return {**records[0], "workloads": list(workloads.values()), "threads": list(threads.values())}


def about(record: Record) -> str:
    """The machine and the versions, in one paragraph."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, last-level cache {machine['last_level_cache']}, "
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}; kernels: {machine['kernels']}; "
        f"{machine['threads']} thread(s); {versions}. `{record['command']}`, {record['started']}.\n"
    )


def show(record: Record) -> None:
    """The tables in the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Rich

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    for table in tables(record):
        out = Rich(title=escape(table.title), title_justify="left")
        for name in table.head:
            out.add_column(escape(name), overflow="fold")
        for line in table.lines:
            out.add_row(*map(escape, line))
        console.print(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Markdown from a run's JSON.")
    parser.add_argument("file", type=Path, nargs="+", help="what is in several counts as the last has it")
    parser.add_argument("--readme", action="store_true", help="the short table")
    parser.add_argument("--goals", action="store_true", help="the goals")
    options = parser.parse_args(arguments)
    records = [json.loads(file.read_text()) for file in options.file]
    record = merged(records)
    if options.readme:
        found: Iterable[Table] = readme_table(record)
    elif options.goals:
        found = [goals(record)]
    else:
        for each in records:
            print(about(each))
        found = tables(record)
    for table in found:
        print(markdown(table))


if __name__ == "__main__":
    main()
