"""Gossip on the digits: nodes on a graph mix their models, two of them lie, and there is no server.

python examples/peer_to_peer.py --topology k_regular:6 --attack "alie(z=1.5)" --defence "nnm | trimmed_mean"
"""

from __future__ import annotations

import argparse
import asyncio

from byzflow.errors import ByzflowError
from byzflow.federation.datasets import load
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.models import make_model
from byzflow.federation.nodes import AttackNode
from byzflow.federation.partitions import partition
from byzflow.federation.peer_to_peer import PeerToPeer
from byzflow.federation.progress import train_with_progress


async def train(defence: str, options: argparse.Namespace) -> float:
    """The median accuracy of the honest nodes after the last round."""
    split = load("digits")
    parts = partition("dirichlet", split.train_y, options.honest, alpha=1.0, seed=options.seed)
    honest = [
        LearnerNode(
            make_model("mlp", split.shape, split.classes, seed=0),
            (split.train_x[rows], split.train_y[rows]),
            lr=0.5,
            batch_size=32,
            seed=k,
            test=split,
        )
        for k, rows in enumerate(parts)
    ]
    liars = [AttackNode(options.attack) for _ in range(options.byzantine)]
    async with PeerToPeer(
        honest, liars, options.topology, defence, f=options.byzantine, evaluate_every=10, seed=options.seed
    ) as p2p:
        told = await train_with_progress(p2p, options.rounds, eval_interval=10)
    return told[-1][1]["accuracy"]


def main() -> None:
    """Train with the defence, and with the mean."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="a multiple of 10")
    parser.add_argument("--honest", type=int, default=8)
    parser.add_argument("--byzantine", type=int, default=2)
    parser.add_argument("--topology", default="k_regular:6", help="full, ring, k_regular:6, torus, ...")
    parser.add_argument("--attack", default="sign_flip(scale=4)")
    parser.add_argument("--defence", default="nnm | trimmed_mean")
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
