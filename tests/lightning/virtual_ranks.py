"""Run under torchrun by test_virtual_workers_ddp.py: virtual workers on each rank; what came out, as JSON."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from byzflow_lightning import VirtualWorkers
from tests.lightning.small import distance, fit, lightning_as_it_is, make_module, network, samples

RANKS, WORKERS, BATCH = 2, 3, 6


def shard(rank: int) -> DataLoader[Any]:
    """This rank's part of each batch of RANKS * BATCH."""
    x, y = samples()
    mine = torch.arange(len(y)).view(-1, RANKS, BATCH)[:, rank].flatten()
    return DataLoader(TensorDataset(x[mine], y[mine]), BATCH)


class Spare(nn.Sequential):
    """With a layer that nothing goes through."""

    def __init__(self) -> None:
        super().__init__(*network())
        torch.manual_seed(3)
        self.spare = nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return self[2](self[1](self[0](x)))


def spread(module: Any) -> float:
    """How far the replicas are apart."""
    mine = torch.cat([each.detach().flatten() for each in module.parameters()])
    found = [torch.empty_like(mine) for _ in range(RANKS)]
    dist.all_gather(found, mine)
    return max(float((each - found[0]).abs().max()) for each in found)


def main(folder: Path) -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    told: dict[str, Any] = {}

    def run(workers: Any, *more: Any, net: Any = None, adam: bool = False, **options: Any) -> tuple[Any, Any]:
        optimizer = (lambda p: torch.optim.Adam(p, lr=0.05)) if adam else (lambda p: torch.optim.SGD(p, lr=0.3))
        module = make_module(net=net, optimizer=optimizer)
        options = {"strategy": "ddp", "devices": RANKS, "use_distributed_sampler": False, **options}
        return module, fit(module, shard(rank), *filter(None, [workers]), *more, **options)

    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "accumulation": {"accumulate_grad_batches": 2},
        "clipping": {"gradient_clip_val": 0.05},
        "static graph": {"strategy": "static"},
        "unused": {"strategy": "ddp_find_unused_parameters_true", "net": Spare},
    }
    for name, case in cases.items():
        pair = []
        for workers in (VirtualWorkers(WORKERS, momentum=0), None):
            options = {key: value() if key == "net" else value for key, value in case.items()}
            if options.get("strategy") == "static":
                with lightning_as_it_is():
                    from lightning.pytorch.strategies import DDPStrategy
                options["strategy"] = DDPStrategy(static_graph=True)
            pair.append(run(workers, **options)[0])
        told[name] = {"from ddp": distance(*pair), "apart": spread(pair[0])}

    def attacked() -> VirtualWorkers:
        return VirtualWorkers(6, 2, "gaussian", "momentum | trimmed_mean")

    whole, others = attacked(), attacked()
    straight, _ = run(whole, adam=True, max_epochs=4)
    _, half = run(attacked(), adam=True, max_epochs=2)
    with lightning_as_it_is():
        half.save_checkpoint(folder / "half.ckpt")
    resumed, _ = run(others, adam=True, max_epochs=4, ckpt_path=folder / "half.ckpt")
    rows = whole._momenta.rows
    told["resume"] = {
        "off": distance(straight, resumed),
        "momenta off": max(float((rows[name] - each).abs().max()) for name, each in others._momenta.rows.items()),
        "apart": spread(resumed),
    }

    if find_spec("byzflow_lightning.robust_ddp"):
        from byzflow_lightning import RobustDDP

        module, _ = run(VirtualWorkers(WORKERS, 1, "ipm", "median"), RobustDDP("mean"))
        reference, _ = run(VirtualWorkers(WORKERS, 1, "ipm", "median"))
        told["RobustDDP"] = {"from ddp": distance(module, reference), "apart": spread(module)}
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    result = main(home)
    (home / f"rank{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
