"""Accuracy under attack, with and without a robust rule, over five graphs: `python -m benchmarks.federation_accuracy`.

Ten nodes learn scikit-learn's digits (a few minutes on two cores). Each number is the median test accuracy over the
honest nodes after the last round, and, where nodes have models of their own, that of the worst node in brackets.
`--into docs/federation.md` writes the table between the file's two marks.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from byzflow import theory
from byzflow.errors import WeakAttack
from byzflow.federation import schemas
from byzflow.federation.config import Config, put
from byzflow.federation.typed_file import typed
from byzflow.gossip.analysis import analyse
from byzflow.gossip.topology import Topology, topology

ATTACKS = ("sign_flip", "ipm", "alie(z=1.5)")
MARKS = ("<!-- accuracy: begin -->", "<!-- accuracy: end -->")
COMMON = {
    "nodes.count": 10,
    "data.partition": "dirichlet",
    "data.alpha": 10.0,
    "training.batch_size": 32,
    "training.momentum": 0.9,
}


@dataclass(frozen=True)
class Case:
    """A graph, who lies in it, and the rule that it is defended by."""

    name: str
    graph: str
    liars: tuple[int, ...]
    rule: str
    f: int
    """Of those that one node hears."""
    lr: float
    """A worker of a star steps by the sum of past gradients, a peer by their mean: ten times as much is the same."""
    heard: int | None = None
    """Vectors that a node aggregates, where all that it hears are joined with each other; None on sparse graphs."""


CASES = (
    Case("star", "star", (2, 7), "nnm | trimmed_mean", 2, 0.1, 10),
    Case("mesh", "mesh", (2, 7), "nnm | trimmed_mean", 2, 1.0, 10),
    Case("cluster", "cluster", (2, 7), "nnm | trimmed_mean", 1, 1.0, 5),
    Case("linked groups", "clusters(sizes=5+5, links=2)", (2, 7), "gts", 1, 1.0),
    Case("ring", "ring", (4,), "gts", 1, 1.0),
)


@dataclass(frozen=True)
class Cell:
    """One run."""

    topology: str
    rule: str
    attack: str
    accuracy: float
    worst: float
    seconds: float


def run(case: Case, rule: str, f: int, attack: str, rounds: int, seed: int) -> Cell:
    """One cell; no attack where its name is empty."""
    data: dict[str, Any] = {}
    keys = COMMON | {
        "federation.topology": case.graph,
        "federation.rounds": rounds,
        "federation.seed": seed,
        "metrics.every": rounds,
        "nodes.byzantine": list(case.liars) if attack else 0,
        "attack.name": attack or ATTACKS[0],
        "defence.rule": rule,
        "defence.f": f,
        "training.lr": case.lr,
    }
    for key, value in keys.items():
        put(data, key, value, "benchmark")
    config = typed(data, Config, "benchmark")
    federation = schemas.of(config)(config)
    history = federation.train(rounds)
    found = [member.node.evaluate()["accuracy"] for member in federation.members.values() if not member.byzantine]
    return Cell(case.name, rule, attack, median(found), min(found), sum(report.seconds for report in history))


def cells(cases: Sequence[Case], rounds: int, seed: int) -> Iterator[Cell]:
    """All cells: without attack the mean; under each attack the mean and the rule."""
    for case in cases:
        yield run(case, "mean", 0, "", rounds, seed)
        for rule, f in (("mean", 0), (case.rule, case.f)):
            for attack in ATTACKS:
                yield run(case, rule, f, attack, rounds, seed)


def advice(case: Case, rule: str) -> str:
    """What is proven of a rule where it stands, before anything runs."""
    if rule == "mean":
        return theory("mean", n=10, f=case.f).note
    if case.heard is not None:
        found = theory(rule, n=case.heard, f=case.f)
        heads = "; of the clusters' heads, nothing" if case.graph == "cluster" else ""
        return f"certified for f = {case.f} of n = {case.heard}: kappa <= {found.kappa_upper:.2g}{heads}"
    graph = topology(case.graph, 10)
    assert isinstance(graph, Topology)
    report = analyse(graph, byzantine=case.liars)
    assert report.mu2 is not None
    b = max(report.byzantine_weight.values())
    proven = "a proof needs less than 1/2: heuristic" if 2 * b >= report.mu2 else "below 1/2, where proofs begin"
    return f"Byzantine weight b = {b:.2g}, mu2 = {report.mu2:.2g}, b/mu2 = {b / report.mu2:.2g}; {proven}"


def markdown(found: Sequence[Cell], rounds: int, seed: int) -> list[str]:
    """The table; in bold what is below 95 % of the accuracy without attack."""
    heads = ["graph", "rule", "liars", "no attack", *(attack.partition("(")[0] for attack in ATTACKS), "what is proven"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for case in CASES:
        mine = [cell for cell in found if cell.topology == case.name]
        if not mine:
            continue
        best = next(cell for cell in mine if not cell.attack)
        for rule in ("mean", case.rule):
            row = [case.name, f"`{rule.replace('|', chr(92) + '|')}`", f"{len(case.liars)} of 10"]
            row.append(_told(best, best) if rule == "mean" else "")
            row += [_told(next(c for c in mine if (c.rule, c.attack) == (rule, attack)), best) for attack in ATTACKS]
            lines.append(f"| {' | '.join([*row, advice(case, rule)])} |")
    lines += [
        "",
        f"Digits, 10 nodes, {rounds} rounds, an MLP of 64 hidden units, Dirichlet(10), seed {seed}, {len(found)} runs.",
    ]
    return lines


def _told(cell: Cell, best: Cell) -> str:
    text = f"{cell.accuracy:.3f}" + ("" if cell.topology == "star" else f" ({cell.worst:.3f})")
    return text if cell.accuracy >= 0.95 * best.accuracy else f"**{text}**"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federation_accuracy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one graph")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each run")
    parser.add_argument("--into", type=Path, help="write the table into a file, between its marks")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore", WeakAttack)
    found = []
    for cell in cells([case for case in CASES if given.only in (None, case.name)], given.rounds, given.seed):
        found.append(cell)
        if given.json:
            print(json.dumps(asdict(cell)), flush=True)
    table = markdown(found, given.rounds, given.seed)
    if not given.json:
        print("\n".join(table))
    if given.into is not None:
        before, _, rest = given.into.read_text(encoding="utf-8").partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        given.into.write_text("\n".join([before + MARKS[0], "", *table, "", MARKS[1] + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
