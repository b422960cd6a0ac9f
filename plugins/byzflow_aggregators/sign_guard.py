"""SignGuard: norms and the statistics of signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from byzflow.errors import RowsError
from byzflow.gram import Gram
from byzflow.operators import Mixing, Step, faults, param, seeded
from byzflow.ranks import middle
from byzflow_aggregators.clusters import mean_shift, two_means
from byzflow_aggregators.cosines import cosines
from byzflow_aggregators.sampling import sample
from byzflow_preaggregators.clipping import shrink

BATCH = 1 << 17  # values that are looked at together


@dataclass(frozen=True)
class SignGuard(Mixing):
    """The mean of rows of usual norm and usual shares of +, 0 and -, clipped to the median norm. Needs n >= 2f + 1.

    Xu et al., ICDCS 2022, https://arxiv.org/abs/2109.05872. A row is kept if its norm is `lower` to `upper` times the
    median norm and its signs lie in the largest cluster. Norms are tested before they are clipped; fedlib clips first,
    so that no norm is ever too large. The signs are those of a random `share` of the coordinates, drawn from (seed,
    round), where the authors' code takes one random stretch. variant=sim also looks at the cosine to the previous
    result, the extra `previous`, which is the state. The definition does not use f.
    """

    name: ClassVar[str] = "sign_guard"
    aliases: ClassVar[tuple[str, ...]] = ("signguard",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2109.05872"
    vectors: ClassVar[tuple[str, ...]] = ("previous",)
    f: int | None = faults(default=None)
    lower: float = param("least norm, relative to the median norm", 0.1, ge=0, le=1)
    upper: float = param("largest norm, relative to the median norm", 3.0, ge=1)
    clustering: Literal["meanshift", "2-means"] = param("how the signs are clustered", "meanshift")
    variant: Literal["plain", "sim"] = param("sim: the cosine to the previous result is clustered too", "plain")
    share: float = param("share of the coordinates whose signs are counted", 0.1, gt=0, le=1)
    seed: int = param("seed of the coordinates", 0, ge=0)

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.declared + 1

    def weights(self, gram: Gram, *, round: int = 0) -> Tensor:
        """Equal on the kept rows, times what clipping leaves."""
        norms = gram.squared_norms.sqrt()
        typical = middle(norms[:, None])[0]
        features = self.signs(gram, seeded(self.seed, self.name, round))
        if self.variant == "sim" and "previous" in gram.vectors:
            similar = cosines(gram.products)[: gram.n, gram.point("previous")]
            features = torch.cat([features, similar[:, None]], dim=1)
        label = mean_shift(features) if self.clustering == "meanshift" else two_means(features)
        usual = label == label[label >= 0].bincount().argmax()
        kept = usual & (norms >= self.lower * typical) & (norms <= self.upper * typical)
        if not bool(kept.any()):
            raise RowsError(f"{self}: no row has both a usual norm and usual signs")
        return gram.mean_of(kept.nonzero().flatten()) * shrink(norms, typical)

    def signs(self, gram: Gram, generator: torch.Generator) -> Tensor:
        """(n, 3): each row's share of +, 0 and - among some coordinates."""
        count = max(1, round(self.share * gram.d)) if gram.d else 0
        total = torch.zeros(gram.n, 3, dtype=torch.float64)
        together = max(1, BATCH // gram.n)
        for start in range(0, count, together):
            x = gram.coordinates(sample(gram.d, count, generator, start, start + together))
            total += torch.stack([(x > 0).sum(1), (x == 0).sum(1), (x < 0).sum(1)], dim=1).cpu()
        return total / max(1, count)

    def remember(self, step: Step) -> Mapping[str, Any]:
        """The result, where the next call looks at it, and the round."""
        previous = {"previous": step.value} if self.variant == "sim" else {}
        return {**super().remember(step), **previous}
