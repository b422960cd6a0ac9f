"""Every strategy of Flower's with `Robust` around it, under attack: `python -m benchmarks.flower_matrix`.

Ten clients train a small network on scikit-learn's handwritten digits (`byzflow_flower.digits`), three of them
Byzantine. A cell is the test accuracy in per cent after the last round. `alone` is the strategy without `Robust` and
without attack, and `off` the largest difference of any weight between that and `Robust(strategy, "mean")`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    QFedAvg,
    Strategy,
)

from byzflow_flower import AttackedGrid, LocalGrid, Robust, byzantine, mods
from byzflow_flower.digits.client_app import train
from byzflow_flower.digits.settings import Settings
from byzflow_flower.digits.task import evaluate, load, make_model

CLIENTS, FAULTS = 10, 3
NORM = 5.0  # that updates are clipped to; no honest one is so long
RULES = ("mean", "trimmed_mean", "krum", "arc | nnm | geometric_median")
ATTACKS = ("none", "alie(z=1.5)", "label_flip")
KEPT = {"fraction_evaluate": 0.0}

Wrap = Callable[[Strategy], Strategy]


@dataclass(frozen=True)
class Row:
    """One wrapped strategy: `inside` is what `Robust` gets, `outside` what is put around it."""

    inside: Callable[[], Strategy]
    outside: Wrap = lambda strategy: strategy
    mods: Sequence[Any] = ()
    weighted: bool = True  # by the claimed numbers of examples

    def alone(self) -> Strategy:
        """Without `Robust`."""
        return self.outside(self.inside())

    def robust(self, rule: str) -> Strategy:
        """With it. Only the mean makes use of the claims, as the strategy alone does."""
        cap = 1e6 if rule == "mean" and self.weighted else None
        return self.outside(Robust(self.inside(), rule, f=FAULTS, examples_cap=cap))


def _server_fixed(strategy: Strategy) -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(strategy, 0.0, NORM, CLIENTS)


def _server_adaptive(strategy: Strategy) -> Strategy:
    return DifferentialPrivacyServerSideAdaptiveClipping(strategy, 1e-9, CLIENTS, initial_clipping_norm=NORM)


def _client_fixed(strategy: Strategy) -> Strategy:
    return DifferentialPrivacyClientSideFixedClipping(strategy, 0.0, NORM, CLIENTS)


def _client_adaptive(strategy: Strategy) -> Strategy:
    return DifferentialPrivacyClientSideAdaptiveClipping(strategy, 1e-9, CLIENTS, initial_clipping_norm=NORM)


def _fedavg() -> Strategy:
    return FedAvg(**KEPT)


ROWS: Mapping[str, Row] = {
    "FedAvg": Row(_fedavg),
    "FedAvgM": Row(lambda: FedAvgM(server_momentum=0.5, **KEPT)),
    "FedAdam": Row(lambda: FedAdam(eta=0.03, tau=1e-2, **KEPT)),
    "FedAdagrad": Row(lambda: FedAdagrad(eta=0.1, tau=1e-2, **KEPT)),
    "FedYogi": Row(lambda: FedYogi(eta=0.03, tau=1e-2, **KEPT)),
    "FedProx": Row(lambda: FedProx(proximal_mu=0.1, **KEPT)),
    "QFedAvg (q = 0)": Row(
        lambda: QFedAvg(client_learning_rate=0.15, q=0.0, train_loss_key="train-loss", **KEPT), weighted=False
    ),
    "DP, server, fixed, inside": Row(lambda: _server_fixed(_fedavg())),
    "DP, server, fixed, outside": Row(_fedavg, _server_fixed),
    "DP, server, adaptive, inside": Row(lambda: _server_adaptive(_fedavg())),
    "DP, server, adaptive, outside": Row(_fedavg, _server_adaptive),
    "DP, client, fixed, inside": Row(lambda: _client_fixed(_fedavg()), mods=[fixedclipping_mod]),
    "DP, client, fixed, outside": Row(_fedavg, _client_fixed, [fixedclipping_mod]),
    "DP, client, adaptive, inside": Row(lambda: _client_adaptive(_fedavg()), mods=[adaptiveclipping_mod]),
    "DP, client, adaptive, outside": Row(_fedavg, _client_adaptive, [adaptiveclipping_mod]),
}


def run(row: Row, strategy: Strategy, attack: str, rounds: int, seed: int = 0) -> ArrayRecord:
    """The model after a training."""
    settings = Settings(attack=attack, f=FAULTS, num_server_rounds=rounds, seed=seed)
    app = ClientApp(mods=[*row.mods, byzantine(mods.chosen("attack", {"label_flip": mods.label_flip}), f="f")])
    app.train()(train)
    grid: Any = LocalGrid(dict.fromkeys(range(CLIENTS), app), run_config=settings.run_config())
    if settings.forges_replies:
        grid = AttackedGrid(grid, attack, f=FAULTS)
    start = ArrayRecord(make_model(seed).state_dict())
    return strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds).arrays


def accuracy(arrays: ArrayRecord, seed: int = 0) -> float:
    """In per cent, on held-out digits."""
    model = make_model(seed)
    model.load_state_dict(arrays.to_torch_state_dict())
    return 100 * evaluate(model, load(seed)[1])[1]


def apart(one: ArrayRecord, other: ArrayRecord) -> float:
    """The largest difference of any number."""
    return max(float(np.abs(one[name].numpy() - other[name].numpy()).max()) for name in one)


@contextmanager
def quick() -> Iterator[None]:
    """Silence, one thread, and nothing to collect for QFedAvg, which asks the garbage collector after each reply."""
    logger, threads = logging.getLogger("flwr"), torch.get_num_threads()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
        logger.setLevel(level)


def measure(name: str, rounds: int, rules: Sequence[str] = RULES, attacks: Sequence[str] = ATTACKS) -> dict[str, Any]:
    """One row of the table."""
    row = ROWS[name]
    alone = run(row, row.alone(), "none", rounds)
    cells = {}
    off = float("nan")
    for rule in rules:
        for attack in attacks:
            model = run(row, row.robust(rule), attack, rounds)
            cells[f"{rule}, {attack}"] = accuracy(model)
            if (rule, attack) == ("mean", "none"):
                off = apart(alone, model)
    return {"strategy": name, "alone": accuracy(alone), "off": off, "cells": cells}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown."""
    rules = list(dict.fromkeys(cell.rpartition(", ")[0] for cell in rows[0]["cells"]))
    heads = [f"`{rule}`".replace("|", "\\|") for rule in rules]
    lines = [f"| strategy | alone | off | {' | '.join(heads)} |", "|---" * (3 + len(rules)) + "|"]
    for row in rows:
        shown = [" / ".join(f"{v:.0f}" for cell, v in row["cells"].items() if cell.startswith(f"{r}, ")) for r in rules]
        lines.append(f"| {row['strategy']} | {row['alone']:.0f} | {row['off']:.0e} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the matrix and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of training (default: 15)")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS), metavar="STRATEGY", help="rows")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    options = parser.parse_args()
    rows = []
    with quick():
        for name in options.only:
            rows.append(measure(name, options.rounds))
            print(json.dumps(rows[-1]) if options.json else name, flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rounds": options.rounds, "rows": rows}, indent=2))
    print(table(rows))


if __name__ == "__main__":
    main()
