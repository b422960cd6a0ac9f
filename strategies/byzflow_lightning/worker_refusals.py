"""What virtual workers would get wrong, refused before training starts."""

from __future__ import annotations

from typing import Any

from byzflow.errors import SpecError
from byzflow.operators import Attack, Operator
from byzflow.spec import parse_attack, parse_rule

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
    operator = parse_rule(spec, f)
    operator.check(n)
    return operator


def read_attack(spec: str | Operator, honest: int, f: int) -> Attack:
    """The attack of a spec. SpecError or NotEnoughSenders if it is none, or not valid for so many honest rows."""
    attack = parse_attack(spec, f)
    if attack.f != f:
        raise SpecError(f"{attack} is made for f={attack.f} attackers: VirtualWorkers has f={f}")
    attack.check(honest)
    return attack
