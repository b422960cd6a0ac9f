"""What virtual workers would get wrong, refused before training starts."""

from __future__ import annotations

from typing import Any

import byzflow
from byzflow.errors import SpecError
from byzflow.operators import Attack, Operator

WHOLE = ("SingleDeviceStrategy", "DDPStrategy")  # each process holds the whole model
SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")


def check_training(trainer: Any, module: Any) -> None:
    """SpecError for manual optimisation, LBFGS and models in pieces."""
    if not module.automatic_optimization:
        raise SpecError("VirtualWorkers works with automatic optimization: this module's is manual")
    for optimizer in trainer.optimizers:
        if "LBFGS" in [kind.__name__ for kind in type(optimizer).__mro__]:
            raise SpecError("VirtualWorkers gives one gradient a step and LBFGS asks for several: use SGD or Adam")
    kinds = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    if not set(kinds) & set(WHOLE) or set(kinds) & set(SHARDED):
        raise SpecError(f"VirtualWorkers does not work with {kinds[0]}: use one device, or Trainer(strategy='ddp')")


def read_rule(spec: str | Operator, n: int, f: int) -> Operator:
    """The aggregation of a spec. SpecError or NotEnoughSenders if it is none, or not valid for n rows."""
    operator = byzflow.parse(spec, f=f, kind="aggregator")
    if isinstance(operator, Attack) or operator.out_rows(n) != 1:
        raise SpecError(f"{operator} is no aggregation: end the spec with a rule, such as '| trimmed_mean'")
    operator.check(n)
    return operator


def read_attack(spec: str | Operator, honest: int, f: int) -> Attack:
    """The attack of a spec. SpecError or NotEnoughSenders if it is none, or not valid for so many honest rows."""
    attack = byzflow.parse(spec, f=f, kind="attack")
    if not isinstance(attack, Attack):
        raise SpecError(f"{attack} is not an attack: `byzflow list attacks` shows them")
    if attack.f != f:
        raise SpecError(f"{attack} is made for f={attack.f} attackers: VirtualWorkers has f={f}")
    attack.check(honest)
    return attack
