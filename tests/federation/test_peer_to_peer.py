"""Peer to peer: models really mix, by the rule that was chosen, and every attack can be used."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from byzflow.custom import Aggregator
from byzflow.errors import FederationError
from byzflow.federation.distributed import DistributedByzantineNode
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.node_actor import HonestNodeActor
from byzflow.federation.nodes import AttackNode, ByzantineNode, PoisonedNode
from byzflow.federation.peer_to_peer import PeerToPeer
from byzflow_attacks.poisoned_data import label_flip
from tests.federation.small import Valued

START = [0.0, 10.0, 20.0, 30.0]


async def mixed(rounds: int, nodes: list[Any], *arguments: Any, **settings: Any) -> list[float]:
    async with PeerToPeer(nodes, *arguments, **settings) as p2p:
        for _ in range(rounds):
            await p2p.round()
    return [float(node.x[0]) for node in nodes]


@pytest.mark.parametrize("graph", ["ring", "full"])
def test_values_reach_the_mean_under_the_mean(graph: str) -> None:
    """After ten rounds the original had left 0, 10, 20, 30 as they were."""
    values = asyncio.run(mixed(30, [Valued(v) for v in START], (), graph))
    assert values == pytest.approx([15.0] * 4, abs=1e-3)


def test_the_chosen_rule_is_called() -> None:
    """The original took the median, whatever was asked."""

    class Largest(Aggregator):
        def aggregate(self, rows: Sequence[Any]) -> Any:
            return torch.stack(list(rows)).amax(0)

    assert asyncio.run(mixed(3, [Valued(v) for v in START], (), "ring", Largest())) == [30.0] * 4
    assert asyncio.run(mixed(1, [Valued(v) for v in START], (), "full", "median")) == [15.0] * 4


def test_the_step_size_is_the_one_that_is_given() -> None:
    class Falling(Valued):
        def half_step(self) -> Tensor:
            return self.x - self.lr

    assert asyncio.run(mixed(1, [Falling(1.0), Falling(1.0)], lr=0.25)) == [0.75, 0.75]
    assert asyncio.run(mixed(1, [Falling(1.0), Falling(1.0)])) == pytest.approx([0.95, 0.95])


def learner(k: int, flipped: bool = False, lr: float = 0.5) -> LearnerNode:
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(k)
    y = torch.arange(60) % 3
    x = nn.functional.one_hot(y, 3).float() * 2 + 0.3 * torch.randn(60, 3, generator=generator)
    test = (x, y)
    return LearnerNode(
        nn.Linear(3, 3), (x, label_flip(y, 3) if flipped else y), lr=lr, batch_size=20, seed=k, test=test
    )


class FlipsItsLabels(DistributedByzantineNode):
    """Trains a model of its own on the wrong labels: a Byzantine node by its attack's flags alone."""

    def __init__(self, attack: Any, honest: LearnerNode) -> None:
        super().__init__(attack=attack)
        self.model, self.learner, self.lr = honest.learner.module, honest, 0.5

    def next_batch(self) -> Any:
        return self.learner.next_batch()


LIARS = {
    "sign_flip": lambda: AttackNode("sign_flip"),
    "alie": lambda: AttackNode("alie(z=1.5)"),
    "ipm": lambda: AttackNode("ipm"),
    "own sign_flip": lambda: AttackNode("sign_flip(knowledge=own)", learner(9)),
    "inf": lambda: AttackNode("inf"),
    "gaussian": lambda: AttackNode("gaussian"),
    "mimic": lambda: AttackNode("mimic"),
    "label_flip": lambda: PoisonedNode(learner(9, flipped=True)),
    "gradient": lambda: FlipsItsLabels("sign_flip(f=1, knowledge=own)", learner(9)),
    "distributed ipm": lambda: FlipsItsLabels("ipm(f=1)", learner(9)),
}


@pytest.mark.parametrize("name", LIARS)
def test_every_attack_can_be_used_and_is_borne(name: str) -> None:
    async def main() -> None:
        liar: ByzantineNode = LIARS[name]()
        async with PeerToPeer([learner(k) for k in range(5)], [liar], "full", "trimmed_mean", "nnm", f=1) as p2p:
            for _ in range(12):
                report = await p2p.round()
            assert not report.errors
            assert 5 not in report.missing  # it did speak
            assert report.metrics["accuracy"] > 0.9

    asyncio.run(main())


def test_a_gradient_attack_lies_about_its_half_step() -> None:
    """It sends its model after a step in the wrong direction, not a gradient in a model's place."""
    honest, node = learner(9), FlipsItsLabels("sign_flip(f=1, knowledge=own)", learner(9))
    before = honest.get_parameters()
    lie = node.half_lie([before], 0, 1)
    assert lie is not None
    gradient = honest.honest_gradient_for_next_batch()
    torch.testing.assert_close(lie, before + 0.5 * gradient)
    node.application.run_pipeline_sync("attack", {"base_grad": gradient})
    asyncio.run(node.shutdown_distributed())


def test_nodes_on_workers_and_two_runs_side_by_side() -> None:
    async def main() -> None:
        nodes = [await HonestNodeActor.spawn(Valued, v, backend="thread") for v in START]
        first = PeerToPeer(nodes, (), "ring")
        here = [Valued(100.0), Valued(200.0)]
        second = PeerToPeer(here, (), "full")
        for _ in range(20):
            await asyncio.gather(first.round(), second.round())
        found = [float((await node.get_parameters())[0]) for node in nodes]
        assert found == pytest.approx([15.0] * 4, abs=1e-2)
        assert [float(node.x[0]) for node in here] == [150.0, 150.0]
        await asyncio.gather(first.shutdown(), second.shutdown())
        with pytest.raises(FederationError, match="take a ParameterServer"):
            PeerToPeer(here, (), "star")

    asyncio.run(main())
