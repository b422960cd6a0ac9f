"""What can be told of RobustDDP without a second process: arguments, namespaces, LightningCLI, refusals."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn

from byzflow.errors import ByzflowError, SpecError
from byzflow_lightning import RobustDDP, RobustReducer
from byzflow_lightning.refusals import check_model, check_optimizers, check_strategy


@pytest.mark.parametrize(
    ("operator", "options", "message"),
    [
        ("alie", {"f": 1}, "is no aggregation"),
        ("nnm", {"f": 1}, "is no aggregation"),
        ("medain", {}, "did you mean median"),
        ("trimmed_mean", {}, "needs f"),
        ("median", {"trust": "nobody"}, "trust must be 'shard' or 'gather'"),
        ("median", {"overlap": True, "trust": "gather"}, "needs trust='shard'"),
        ("momentum | median", {"overlap": True}, "remembers vectors"),
        ("layerwise(rule=centered_clipping(tau=1))", {"trust": "gather"}, "remembers vectors"),
    ],
)
def test_bad_arguments_are_told_at_once(operator: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ByzflowError, match=message):
        RobustDDP(operator, **options)


def test_it_is_a_callback_of_both_namespaces() -> None:
    callback = RobustDDP("median")
    assert isinstance(callback, lightning.pytorch.Callback)
    assert isinstance(callback, pytorch_lightning.Callback)


CLI = """
import sys
from {namespace} import LightningModule
from {namespace}.cli import LightningCLI

class Module(LightningModule):
    pass

cli = LightningCLI(Module, run=False, args=["--config", sys.argv[1]], save_config_callback=None)
robust = cli.trainer.callbacks[0]
print(type(robust).__name__, robust.reducer.operator, robust.reducer.f, robust.reducer.trust)
"""


@pytest.mark.parametrize(
    ("namespace", "operator", "said"),
    [
        ("lightning.pytorch", "{class_path: byzflow_aggregators.krum.Krum, init_args: {f: 2}}", "krum(f=2)"),
        ("pytorch_lightning", "nnm | trimmed_mean", "nnm(f=2) | trimmed_mean(f=2)"),
    ],
    ids=["class", "spec"],
)
def test_lightning_cli_builds_it_from_yaml(tmp_path: Any, namespace: str, operator: str, said: str) -> None:
    pytest.importorskip("docstring_parser", reason="LightningCLI needs jsonargparse[signatures]")
    (tmp_path / "config.yaml").write_text(f"""
trainer:
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  callbacks:
    - class_path: byzflow_lightning.RobustDDP
      init_args:
        operator: {operator}
        f: 2
        trust: gather
""")
    (tmp_path / "train.py").write_text(CLI.format(namespace=namespace))
    done = subprocess.run(
        [sys.executable, "train.py", "config.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"RobustDDP {said} 2 gather"


@pytest.mark.parametrize("kind", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAStrategy"])
def test_other_strategies_are_refused(kind: str) -> None:
    ddp = type("DDPStrategy", (), {"_ddp_comm_hook": None})
    check_strategy(ddp())
    check_strategy(type("DDPOfMine", (ddp,), {})())
    bases = (ddp,) if kind in ("DeepSpeedStrategy", "XLAStrategy") else ()  # as in Lightning
    with pytest.raises(SpecError, match=f"does not work with {kind}"):
        check_strategy(type(kind, bases, {})())


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


def model(**parts: nn.Module) -> Any:
    return SimpleNamespace(module=nn.ModuleDict(parts), parameters_to_ignore=set())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (model(norm=nn.SyncBatchNorm(3)), "norm is a SyncBatchNorm"),
        (model(table=nn.Embedding(3, 2, sparse=True)), "table gives sparse gradients"),
        (model(waves=Waves()), "waves.phase is torch.complex64"),
        (SimpleNamespace(**vars(model()), mixed_precision=object()), "mixed_precision"),
        (SimpleNamespace(**vars(model()), _delay_all_reduce_params=[1]), "delay_all_reduce"),
        (SimpleNamespace(module=nn.Linear(2, 2), parameters_to_ignore={"bias"}), "bias is ignored by DDP"),
    ],
)
def test_models_past_the_rule_are_refused(wrong: Any, message: str) -> None:
    check_model(model(fine=nn.BatchNorm1d(3)))
    with pytest.raises(SpecError, match=message):
        check_model(wrong)


def test_optimisers_that_part_are_refused() -> None:
    parameters = [nn.Parameter(torch.zeros(2))]
    check_optimizers([torch.optim.AdamW(parameters)])
    with pytest.raises(SpecError, match="LBFGS"):
        check_optimizers([torch.optim.LBFGS(parameters)])


def test_a_reducer_without_a_model_says_so() -> None:
    with pytest.raises(ByzflowError, match="attach"):
        RobustReducer("median").reduce(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1))
