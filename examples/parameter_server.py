"""A parameter server on the digits: eight honest workers, two that lie, and what the mean makes of it.

    python examples/parameter_server.py --rounds 60 --attack sign_flip --defence "nnm | trimmed_mean"

Every worker lives on a thread of its own; `--backend process` gives each a process.
"""

from __future__ import annotations

import argparse
import asyncio

from byzflow.errors import ByzflowError
from byzflow.federation.datasets import Split, load
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.models import make_model
from byzflow.federation.node_actor import ByzantineNodeActor, HonestNodeActor
from byzflow.federation.nodes import AttackNode
from byzflow.federation.parameter_server import ParameterServer
from byzflow.federation.partitions import partition
from byzflow.federation.progress import train_with_progress


def worker(split: Split, rows: list[int], seed: int) -> LearnerNode:
    """An honest worker with its share of the digits; all begin with the same model."""
    model = make_model("mlp", split.shape, split.classes, seed=0)
    data = (split.train_x[rows], split.train_y[rows])
    return LearnerNode(model, data, lr=0.2, momentum=0.9, batch_size=32, seed=seed, test=split)


async def train(defence: str, options: argparse.Namespace) -> float:
    """The accuracy after the last round."""
    split = load("digits")
    parts = partition("dirichlet", split.train_y, options.honest, alpha=1.0, seed=options.seed)
    honest = [
        await HonestNodeActor.spawn(worker, split, [*map(int, rows)], k, backend=options.backend)
        for k, rows in enumerate(parts)
    ]
    liars = [
        await ByzantineNodeActor.spawn(AttackNode, options.attack, backend="thread") for _ in range(options.byzantine)
    ]
    async with ParameterServer(
        honest, liars, aggregator=defence, f=options.byzantine, evaluate_every=10, seed=options.seed
    ) as server:
        told = await train_with_progress(server, options.rounds, eval_interval=10)
    return told[-1][1]["accuracy"]


def main() -> None:
    """Train with the defence, and with the mean."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="a multiple of 10")
    parser.add_argument("--honest", type=int, default=8)
    parser.add_argument("--byzantine", type=int, default=2)
    parser.add_argument("--attack", default="sign_flip(scale=4)")
    parser.add_argument("--defence", default="nnm | trimmed_mean")
    parser.add_argument("--backend", default="thread", help="of the workers: thread or process")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.rounds < 10 or options.rounds % 10:
        parser.error(f"--rounds must be a multiple of 10, got {options.rounds}")
    try:
        for defence in ("mean", options.defence):
            print(f"{defence}: accuracy {asyncio.run(train(defence, options)):.3f}")
    except ByzflowError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
