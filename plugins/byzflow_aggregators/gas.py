"""Gradient splitting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from byzflow.errors import SpecError
from byzflow.gram import Gram, smallest
from byzflow.operators import Attack, Mixing, Operator, PreAggregator, faults, param, seeded

BATCHES = 32  # in so many the parts are gathered, so that each holds a small share of the rows


@dataclass(frozen=True)
class GAS(Mixing):
    """The mean of the n - f rows nearest to a rule's results on p random parts of the vectors. Needs n >= 2f + 1.

    Liu et al., ICML 2023, https://arxiv.org/abs/2302.06079. A row's score is the sum over the parts of its distance to
    what `rule` gives for that part. The rule is used to find rows, not to aggregate them: the authors take bulyan. Each
    part is a random coordinate of every p in a row, so that no layer is left out by chance, drawn from (seed, round).
    """

    name: ClassVar[str] = "gas"
    paper: ClassVar[str] = "https://arxiv.org/abs/2302.06079"
    f: int = faults()
    rule: Operator = param("the rule that is applied to every part")
    p: int = param("parts", 1000, ge=1)
    seed: int = param("seed of the parts", 0, ge=0)

    def __post_init__(self) -> None:
        """The rule makes one row, from rows alone."""
        super().__post_init__()
        if isinstance(self.rule, PreAggregator | Attack) or self.rule.vector_names:
            raise SpecError(f"gas: rule must make one row of the rows alone, which {self.rule} does not")
        for flag in ("shift_invariant", "permutation_equivariant"):
            object.__setattr__(self, flag, getattr(self.rule, flag))

    @property
    def min_senders(self) -> int:
        """2f + 1, and what `rule` needs."""
        return max(2 * self.f + 1, self.rule.min_senders)

    def check(self, n: int) -> None:
        """The rule must be valid for n rows."""
        super().check(n)
        self.rule.check(n)

    def shrunk(self, count: int) -> Self:
        """The rule too."""
        return replace(super().shrunk(count), rule=self.rule.shrunk(count))

    def without(self, rejected: tuple[int, ...], n: int) -> Self:
        """The rule too."""
        return replace(super().shrunk(len(rejected)), rule=self.rule.without(rejected, n))

    def weights(self, gram: Gram, *, round: int = 0) -> Tensor:
        """1/(n - f) on the rows of least score."""
        score = torch.zeros(gram.n, dtype=torch.float64)
        p = max(1, min(self.p, gram.d))
        stretches = torch.arange(0, gram.d, p)
        turns = torch.randint(p, stretches.shape, generator=seeded(self.seed, self.name, round))
        for some in torch.split(torch.arange(p), max(1, p // BATCHES)):
            places = stretches + (some[:, None] + turns) % p  # a line a part; every coordinate is in one of all lines
            inside = places < gram.d  # the last stretch may be shorter than p
            for x in torch.split(gram.coordinates(places[inside]), inside.sum(1).tolist(), dim=1):
                if x.shape[1]:
                    score += torch.linalg.vector_norm(x.double() - self.rule(x).double(), dim=1).cpu()
        if gram.infinite is not None:
            score = score.masked_fill(gram.infinite, torch.inf)
        return gram.mean_of(smallest(score, gram.n - self.f))
