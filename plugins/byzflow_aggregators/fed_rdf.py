"""FedRDF: the densest value, found by a Fourier series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from byzflow.operators import CoordinateWise, faults, param
from byzflow.ranks import middle, ranked

EDGE = 6.0  # kernel widths from the median beyond which values are gathered, and never chosen
HALF_PERIOD = EDGE + 3.0  # so far apart that the two edges do not see one another
FREQUENCIES = 12  # the kernel's own spectrum is below 1e-3 beyond these
BLOCK = 1 << 14  # values that are looked at together, with all that is computed of them in the second-level cache


@dataclass(frozen=True)
class FedRDF(CoordinateWise):
    """The value of each coordinate around which the rows lie densest. Needs n >= 2f + 1.

    Marmol Campos et al., IEEE TETC 2025, https://arxiv.org/abs/2402.10082. The density is a Fourier series: the rows'
    characteristic function at a few frequencies, under a Gaussian kernel of `bandwidth` times the rows' spread. The
    spread is the median absolute deviation, as a standard deviation: a far row does not widen it, and values more than
    6 kernel widths from the median are never chosen. The authors' code takes argmax |fftfreq| of the sorted values,
    which looks at none of them: it is the upper median. Their switch to the mean is left out: a test of a random part
    of the rows against the others rejects at its own level, whether there is an attack or not. f is only checked.
    """

    name: ClassVar[str] = "fed_rdf"
    aliases: ClassVar[tuple[str, ...]] = ("fedrdf",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.10082"
    shift_invariant: ClassVar[bool] = True
    bandwidth: float = param("width of the kernel, relative to the spread of the rows", 1.0, gt=0)
    f: int | None = faults(default=None)

    @property
    def min_senders(self) -> int:
        """2f + 1."""
        return 2 * self.declared + 1

    def columns(self, x: Tensor) -> Tensor:
        """The value of largest estimated density; the median where most values are equal."""
        return torch.cat([self._densest(block) for block in torch.split(x, max(1, BLOCK // len(x)), dim=1)])

    def _densest(self, x: Tensor) -> Tensor:
        column = ranked(x)  # so that the order of the rows changes no bit
        median = column[(len(x) - 1) // 2 : len(x) // 2 + 1].to(torch.float64).mean(0)
        away = column.detach() - median.detach()
        width = self.bandwidth * 1.4826 * middle(away.abs())
        place = torch.where(width > 0, away / width, 0.0).nan_to_num_(nan=torch.inf)
        far = place.abs() > EDGE
        angle = (place.clamp_(-EDGE, EDGE) * (math.pi / HALF_PERIOD)).to(x.dtype)
        density = torch.zeros_like(angle)
        cos, sin = angle.cos(), angle.sin()
        twice, last_cos, last_sin = 2 * cos, torch.ones_like(cos), torch.zeros_like(sin)
        for k in range(1, FREQUENCIES + 1):
            kernel = math.exp(-((k * math.pi / HALF_PERIOD) ** 2) / 2)
            density.addcmul_(cos, cos.sum(0), value=kernel).addcmul_(sin, sin.sum(0), value=kernel)
            cos, last_cos = torch.mul(twice, cos).sub_(last_cos), cos  # of the next multiple of the angle
            sin, last_sin = torch.mul(twice, sin).sub_(last_sin), sin
        density.masked_fill_(far, -torch.inf)
        densest = torch.where(density == density.amax(0), column, torch.inf).amin(0)  # of equal ones the lowest
        return torch.where(width > 0, densest, median)
