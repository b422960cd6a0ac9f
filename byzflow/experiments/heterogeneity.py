"""The study of heterogeneous data: rule x pre-aggregation x gamma, each against five attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context

import torch

from byzflow.experiments.softmax import Setting, make_data, train
from byzflow.spec import parse, parse_rule

RULES = ("median", "trimmed_mean", "geometric_median", "krum(neighbors=n-f-1)", "multi_krum(neighbors=n-f-1)")
BEFORE = ("", "nnm", "arc | nnm")
GAMMAS = (1.0, 0.33, 0.0)
ATTACKS = ("sign_flip", "ipm", "alie(z=1.5)", "mimic", "label_flip")


@dataclass(frozen=True)
class Cell:
    """One defence on one degree of heterogeneity: its accuracy under each attack."""

    gamma: float
    before: str
    rule: str
    accuracy: dict[str, float]

    @property
    def worst(self) -> float:
        """The accuracy under the attack that hurts most."""
        return min(self.accuracy.values())


def study(
    setting: Setting | None = None,
    *,
    rules: Sequence[str] = RULES,
    before: Sequence[str] = BEFORE,
    gammas: Sequence[float] = GAMMAS,
    attacks: Sequence[str] = ATTACKS,
    jobs: int = 2,
    done: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Every combination, over `jobs` processes; `done` is called with each cell as it is there.

    The same setting gives the same figures, whatever the number of processes.
    """
    setting = setting or Setting(gamma=1.0)
    tasks = [
        (replace(setting, gamma=gamma), b, rule, tuple(attacks)) for gamma, rule, b in product(gammas, rules, before)
    ]
    for _, b, rule, _ in tasks:
        defence = parse_rule(_chain(b, rule), setting.f)
        defence.check(setting.honest + setting.f)
    cells = []
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for cell in pool.map(_cell, tasks):
            cells.append(cell)
            done(cell)
    return cells


def attack_free(setting: Setting) -> float:
    """The accuracy of the mean without attackers."""
    return train(setting, make_data(setting), parse("mean"), None)


def _chain(before: str, rule: str) -> str:
    return f"{before} | {rule}" if before else rule


def _cell(task: tuple[Setting, str, str, tuple[str, ...]]) -> Cell:
    setting, before, rule, attacks = task
    data, defence = make_data(setting), parse(_chain(before, rule), f=setting.f)
    accuracy = {
        name: train(setting, data, defence, name if name == "label_flip" else parse(name, f=setting.f))
        for name in attacks
    }
    return Cell(setting.gamma, before, rule, accuracy)
