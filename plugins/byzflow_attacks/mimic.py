"""Mimicking one honest participant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from byzflow.engine.passes import combine_pass, gram_pass
from byzflow.errors import SpecError
from byzflow.gram import Gram
from byzflow.layout import Flat, Layout
from byzflow.operators import Attack, Mixing, RowsOperator, Step, param, seeded
from byzflow.rows import AnyRows, Mixed, Rows
from byzflow_attacks.directions import arrow, length, mean_weights


@dataclass(frozen=True)
class Mimic(Attack, Mixing):
    """A copy of honest row `index`, sent by all attackers: over-represents one participant's data.

    Karimireddy et al., ICLR 2022, https://arxiv.org/abs/2006.09365.
    """

    name: ClassVar[str] = "mimic"
    measures: ClassVar[Literal["distances", "norms", "nothing"]] = "norms"
    paper: ClassVar[str] = "https://arxiv.org/abs/2006.09365"
    permutation_equivariant: ClassVar[bool] = False
    index: int = param("the honest row to copy", 0, ge=0)

    def check(self, n: int) -> None:
        """The row must be there."""
        super().check(n)
        if self.index >= n:
            raise SpecError(f"{self}: index must be below the number of honest rows, {n}")

    def weights(self, gram: Gram) -> Tensor:
        """(h,): 1 on the copied row."""
        return gram.unit(self.index)


@dataclass(frozen=True)
class MimicAdaptive(Attack, RowsOperator):
    """A copy of the honest row farthest along the direction in which honest rows differ most, learnt over rounds.

    Karimireddy et al., ICLR 2022, https://arxiv.org/abs/2006.09365. For `warmup` rounds the direction z follows the
    sum of <x_i - m, z> (x_i - m), m the mean over rows and rounds; then the row copied last is copied for good. The
    state is `direction`, `average`, `chosen` and `round`: pass what `explain` returns to the next call.
    """

    name: ClassVar[str] = "mimic_adaptive"
    aliases: ClassVar[tuple[str, ...]] = ("mimic_heuristic",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2006.09365"
    vectors: ClassVar[tuple[str, ...]] = ("direction", "average")
    warmup: int = param("rounds after which the row is fixed", 30, ge=1)
    seed: int = param("seed of the first direction", 0, ge=0)

    def produce(
        self,
        rows: AnyRows,
        *,
        direction: Rows | None = None,
        average: Rows | None = None,
        chosen: int | None = None,
        round: int = 0,
    ) -> list[Flat]:
        """One answer: a copy."""
        if chosen is None or round < self.warmup:
            chosen, _ = self.look(rows, direction, average, round)
        copied = rows.take([min(chosen, rows.n - 1)])
        return combine_pass(copied)

    def look(self, rows: AnyRows, direction: Rows | None, average: Rows | None, round: int) -> tuple[int, Mixed]:
        """The row to copy, and the next direction and average."""
        z, m = direction or self.first(rows.layout), average or rows.take([0])  # that has weight 0
        inner, _ = gram_pass(rows, [z, m])
        gram = Gram(inner, rows.n, {"direction": 1, "average": 1})
        each, old = torch.eye(rows.n, gram.origin, dtype=torch.float64), gram.unit(gram.point("direction"))
        share = 1 / (1 + round) if direction is not None and average is not None else 1.0
        middle = share * mean_weights(gram) + (1 - share) * gram.unit(gram.point("average"))
        pull = (arrow(gram, each - middle) @ gram.inner @ arrow(gram, old)) @ (each - middle)
        strength = length(gram, pull)
        new = (1 - share) * old + share * pull / strength if strength > 0 else old
        new = new / max(length(gram, new), 1e-300)
        along = arrow(gram, each) @ gram.inner @ arrow(gram, new)
        return int(along.argmax()), Mixed([rows, z, m], torch.stack([new, middle]))

    def first(self, layout: Layout) -> Rows:
        """A random direction."""
        noise = torch.randn(layout.d, generator=seeded(self.seed, self.name, 0), dtype=layout.dtype).to(layout.device)
        return Rows((torch.split(noise, [leaf.numel for leaf in layout.leaves]),), layout)

    def remember(self, step: Step) -> Mapping[str, Any]:
        """What was learnt; nothing more after the warm-up."""
        now, chosen = step.extras.get("round", 0), step.extras.get("chosen")
        learnt: dict[str, Any] = {"round": now + 1}
        if chosen is None or now < self.warmup:
            chosen, mixed = self.look(step.rows, step.vectors.get("direction"), step.vectors.get("average"), now)
            flats = combine_pass(mixed)
            learnt |= {name: mixed.layout.restore(flat) for name, flat in zip(self.vectors, flats, strict=True)}
        return learnt | {"chosen": chosen}
