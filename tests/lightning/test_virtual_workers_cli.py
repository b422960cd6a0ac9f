"""Virtual workers from a YAML file, in both of Lightning's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lightning.small import PACKAGES

TRAIN = """
import sys
from {package} import LightningModule
from {package}.cli import LightningCLI

class Module(LightningModule):
    pass

cli = LightningCLI(Module, run=False, args=["--config", sys.argv[1]], save_config_callback=None)
workers = cli.trainer.callbacks[0]
print(workers.n, workers.f, workers.attack, "|", workers.operator, workers.beta, workers.poison, workers.split.__name__)
"""
CONFIG = """
trainer:
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  callbacks:
    - class_path: byzflow_lightning.VirtualWorkers
      init_args:
        n: 10
        f: 3
        attack: {attack}
        operator: {operator}
        split: byzflow_lightning.virtual_workers.split_loaders
"""


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("attack", "operator", "said"),
    [
        ("alie(z=1.5)", "nnm | median", "10 3 alie(f=3, z=1.5) | nnm(f=3) | median(f=3) 0.9 None split_loaders"),
        (
            "{class_path: byzflow_attacks.ipm.IPM, init_args: {f: 3, tau: 5}}",
            "{class_path: byzflow_aggregators.krum.Krum, init_args: {f: 2}}",
            "10 3 ipm(f=3, tau=5.0) | krum(f=2) 0.9 None split_loaders",
        ),
        ("null", "mean", "10 3 None | mean 0.9 None split_loaders"),
    ],
    ids=["spec", "class", "none"],
)
def test_from_yaml(package: str, attack: str, operator: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("docstring_parser", reason="LightningCLI needs jsonargparse[signatures]")
    (tmp_path / "config.yaml").write_text(CONFIG.format(attack=attack, operator=operator))
    (tmp_path / "train.py").write_text(TRAIN.format(package=package))
    command = [sys.executable, "train.py", "config.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == said
