"""Federations that really train: a star keeps one model, gossip mixes; liars and stragglers cost themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from byzflow.errors import FederationError, NotEnoughSenders, QuorumLost, SpecError
from byzflow.federation.federation import Federation
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.models import make_model
from byzflow.federation.nodes import AttackNode, ByzantineNode, HonestNode
from byzflow.gossip.topology import topology


class Constant(HonestNode):
    """Its gradient is always the same; its model is what came of the steps."""

    def __init__(self, gradient: float, start: float = 0.0, delay: float = 0.0) -> None:
        self.gradient, self.x, self.delay = gradient, torch.tensor([start, start], dtype=torch.float64), delay
        self.lr, self.taken = 0.0, 0

    def next_batch(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(0), torch.zeros(0)

    def honest_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.full((2,), self.gradient, dtype=torch.float64)

    def apply_server_gradient(self, gradient: Tensor) -> None:
        self.x = self.x - gradient

    def get_parameters(self) -> Tensor:
        return self.x.clone()

    def set_parameters(self, vector: Tensor) -> None:
        self.x = vector.clone()

    def evaluate(self) -> dict[str, float]:
        return {"x": float(self.x[0])}

    def digest(self) -> str:
        return str(self.x.tolist())


class Slow(Constant):
    async def honest_gradient_for_next_batch(self) -> Tensor:  # type: ignore[override]
        await asyncio.sleep(self.delay)
        return self.honest_gradient(*self.next_batch())


class Broken(Constant):
    def honest_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        raise OSError("disk is gone")


class Wide(Constant):
    def honest_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros(5)


class Knows(ByzantineNode):
    """Sends the sum of the honest vectors that it sees, and remembers how many these were."""

    def byzantine_gradient(self, x: Tensor, y: Tensor, honest_grads: Sequence[Tensor] | None = None) -> Tensor:
        self.seen = len(honest_grads or ())
        return torch.stack(list(honest_grads or [])).sum(0)


def test_a_star_takes_the_rules_step_on_every_node() -> None:
    history = Federation([Constant(1.0), Constant(2.0), Constant(9.0)], defence="median").train(3)
    assert [report.metrics["x"] for report in history] == [-2.0, -4.0, -6.0]
    assert all(len(report.digests) == 1 for report in history)
    assert history[0].connected == (0, 1, 2)
    assert sum(history[0].weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("graph", ["ring", "full", "line", "k_regular:2", "star_of_peers"])
def test_gossip_without_gradients_agrees_on_the_mean(graph: str) -> None:
    nodes = [Constant(0.0, start) for start in (0.0, 10.0, 20.0, 30.0)]
    given = topology("star", 4) if graph == "star_of_peers" else graph
    Federation(nodes, given, "gossip").train(90)
    values = [float(node.x[0]) for node in nodes]
    assert values == pytest.approx([15.0] * 4, abs=1e-3)


def test_a_graph_may_change_with_the_round_and_between_rounds() -> None:
    nodes = [Constant(0.0, float(start)) for start in range(6)]
    Federation(nodes, lambda t: "ring" if t % 2 else "line", "gossip").train(60)
    assert [float(node.x[0]) for node in nodes] == pytest.approx([2.5] * 6, abs=1e-2)

    async def main() -> None:
        nodes = [Constant(0.0, float(start)) for start in range(4)]
        async with Federation(nodes, "line", "gossip") as federation:
            await federation.run(2)
            federation.topology = federation.topology.with_edges(topology("full", 4).edges)  # type: ignore[union-attr]
            await federation.run(1)
            assert [float(node.x[0]) for node in nodes] == pytest.approx([1.5] * 4)
            with pytest.raises(FederationError, match="same nodes"):
                federation.topology = topology("ring", 5)

    asyncio.run(main())


def test_errors_and_wrong_sizes_cost_their_node_alone() -> None:
    nodes = [Constant(1.0), Broken(1.0), Wide(1.0), Constant(1.0), Constant(1.0)]
    history = Federation(nodes, defence="trimmed_mean", f=1).train(2)
    for report in history:
        assert report.errors == {1: "OSError: disk is gone"}
        assert report.missing == (1,)
        assert report.rejected == {2: "5 numbers of float32, not 2 numbers of float64"}
        assert not report.problem
    assert float(nodes[0].x[0]) == -2.0


class Talker(Constant):
    def __init__(self, metrics: Any, digest: Any) -> None:
        super().__init__(1.0)
        self.said = metrics, digest

    def evaluate(self) -> Any:
        return self.said[0]

    def digest(self) -> Any:
        return self.said[1]


def test_metrics_and_digests_that_are_none_count_nowhere() -> None:
    liars = [
        Talker({"x": "many", 3: 1.0, "y": torch.ones(()), "z": 10**400}, ["a"]),
        Talker("fine", {}),
        Talker([1.0], 7),
    ]
    history = Federation([Constant(1.0), Constant(1.0), *liars]).train(2)
    assert history[-1].metrics == {"x": -2.0, "y": 1.0}
    assert list(history[-1].digests.values()) == [(0, 1)]


class Keeper(Constant):
    def state(self) -> dict[str, Any]:
        return {"x": self.x}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.x = state["x"].clone()


class FalseDonor(Keeper):
    """Has the model that all have, and gives another one."""

    def state(self) -> dict[str, Any]:
        return {"x": self.x + 100.0}


def test_a_newcomer_is_given_no_model_but_the_one_that_most_have() -> None:
    async def main() -> None:
        async with Federation([FalseDonor(1.0), *(Keeper(1.0) for _ in range(3))]) as federation:
            await federation.run(2)
            await federation.add("new", Keeper(1.0))
            await federation.run(1)
            assert list(federation.history[-1].digests.values()) == [(0, 1, 2, 3, "new")]

    asyncio.run(main())


def test_a_straggler_does_not_hold_up_the_round_and_is_not_counted_late() -> None:
    nodes = {"fast": Constant(1.0), "other": Constant(1.0), "slow": Slow(100.0, delay=0.6)}

    async def main() -> None:
        async with Federation(nodes, defence="mean", f=1, deadline=0.05) as federation:
            began = time.perf_counter()
            await federation.pace.allow(1)
            while not federation.observer.told:
                await asyncio.sleep(0.01)
            assert time.perf_counter() - began < 0.5
            report = await federation.round()
            assert report.missing == ("slow",)
            second = await federation.round()
            assert second.missing == ("slow",)
            while float(nodes["slow"].x[0]) > -2.0:  # it takes every step, when it comes to it
                await asyncio.sleep(0.01)
        assert [float(node.x[0]) for node in nodes.values()] == [-2.0, -2.0, -2.0]

    asyncio.run(main())


def test_rows_are_ordered_by_node_whatever_comes_first() -> None:
    def nodes(delays: Sequence[float]) -> list[Slow]:
        return [Slow(float(i), delay=delay) for i, delay in enumerate(delays)]

    runs = []
    for delays in ([0.0, 0.02, 0.04], [0.04, 0.02, 0.0]):
        federation = Federation(nodes(delays), defence="monna(f=1, reference_index=0)")
        runs.append([report.metrics["x"] for report in federation.train(2)])
    assert runs[0] == runs[1]


def test_attackers_see_what_their_receivers_hear() -> None:
    knows = Knows()
    Federation([Constant(1.0), Constant(2.0), knows], defence="mean").train(1)
    assert knows.seen == 2
    knows = Knows()
    Federation([Constant(1.0), Constant(2.0), Constant(3.0), knows], "line", "gossip").train(1)
    assert knows.seen == 1  # its one neighbour hears one honest node besides


def test_several_attackers_send_the_rows_of_one_attack() -> None:
    nodes: list[Any] = [Constant(float(i)) for i in range(4)] + [AttackNode("sign_flip(scale=2)") for _ in range(2)]
    history = Federation(nodes, defence="mean").train(1)
    assert history[0].metrics["x"] == pytest.approx(-(1.5 * 4 - 2 * 1.5 * 2) / 6)


def test_an_attacker_with_data_of_its_own_attacks_its_own_vector() -> None:
    liar = AttackNode("sign_flip(scale=1)", learner=Constant(5.0))
    history = Federation([Constant(1.0), liar], defence="mean").train(1)
    assert history[0].metrics["x"] == pytest.approx(2.0)  # the mean of 1 and -5


def test_attackers_without_knowledge_see_nothing_and_tell_all_the_same() -> None:
    knows = Knows()
    history = Federation([Constant(1.0), Constant(2.0), knows], knowledge="own").train(1)
    assert knows.seen == 0
    assert "RuntimeError" in history[0].errors[2]  # it has nothing to add up
    learner = Constant(5.0, 1.0)
    step = learner.half_step

    def counted() -> Tensor:
        learner.taken += 1
        return step()

    learner.half_step = counted  # type: ignore[method-assign]
    nodes: list[Any] = [Constant(0.0), Constant(0.0), Constant(0.0), AttackNode("sign_flip", learner)]
    Federation(nodes, "full", "mean", knowledge="own").train(1)
    assert learner.taken == 1
    assert [float(node.x[0]) for node in nodes[:3]] == [-0.25] * 3
    with pytest.raises(FederationError, match="knowledge is 'omniscient' or 'own'"):
        Federation([Constant(1.0)], knowledge="all")  # type: ignore[arg-type]


def test_judges_receive_and_never_contribute() -> None:
    nodes = {"a": Constant(1.0), "b": Constant(3.0), "judge": Constant(1000.0)}
    history = Federation(nodes, defence="mean", roles={"judge": "eval", "a": "train", "b": "train"}).train(2)
    assert [report.metrics["x"] for report in history] == [-2.0, -4.0]
    assert set(history[0].weights) == {"a", "b"}


def test_a_share_of_the_nodes_is_sampled_for_each_round() -> None:
    nodes = [Constant(float(i)) for i in range(10)]
    history = Federation(nodes, defence="mean", fraction=0.3, seed=1).train(5)
    drawn = [tuple(report.weights) for report in history]
    assert all(len(each) == 3 for each in drawn)
    assert len(set(drawn)) > 1
    again = Federation([Constant(float(i)) for i in range(10)], defence="mean", fraction=0.3, seed=1).train(5)
    assert [tuple(report.weights) for report in again] == drawn


def test_without_a_quorum_the_run_ends_with_a_reason() -> None:
    async def main() -> None:
        nodes = [Constant(1.0), Slow(1.0, delay=30.0), Slow(1.0, delay=30.0)]
        async with Federation(nodes, defence="mean", f=1, deadline=0.01, patience=0.2) as federation:
            with pytest.raises(QuorumLost, match="1 of 3 sent 'update' for round 0"):
                await federation.round()
            assert not federation.running
            with pytest.raises(FederationError, match="was stopped"):
                await federation.round()

    asyncio.run(main())


def test_two_federations_run_side_by_side() -> None:
    async def main() -> None:
        one = Federation([Constant(1.0), Constant(1.0)], defence="mean")
        other = Federation([Constant(2.0), Constant(2.0)], defence="mean")
        async with one, other:
            await asyncio.gather(one.run(5), other.run(5))
        assert (one.history[-1].metrics["x"], other.history[-1].metrics["x"]) == (-5.0, -10.0)

    asyncio.run(main())


def test_states_and_mistakes() -> None:
    federation = Federation({"a": Constant(1.0), "b": Constant(1.0)})
    assert (federation.running, federation.num_nodes, federation.node_ids) == (False, 2, ("a", "b"))
    assert isinstance(federation["a"], Constant)
    with pytest.raises(FederationError, match=r"no node 'c'; there are a, b"):
        federation["c"]

    async def stopped_twice() -> None:
        await federation.stop()
        await federation.stop()

    asyncio.run(stopped_twice())
    with pytest.raises(FederationError, match="at least one node"):
        Federation([])
    with pytest.raises(FederationError, match="no node 7"):
        Federation([Constant(1.0)], roles={7: "eval"})
    with pytest.raises(SpecError, match="unknown"):
        Federation([Constant(1.0)], defence="kurm")
    with pytest.raises(FederationError, match="'gradients' or 'updates'"):
        Federation([Constant(1.0)], exchange="weights")  # type: ignore[arg-type]
    with pytest.raises(FederationError, match="node 1 is the class Constant: make one of it"):
        Federation([Constant(1.0), Constant])
    with pytest.raises(FederationError, match="node 0 cannot train: int has no honest_gradient_for_next_batch"):
        Federation([3])
    with pytest.raises(FederationError, match="'process:' is where a VirtualNode is made, and none of the nodes is"):
        Federation([Constant(1.0)], backend="process:")
    once = Federation([Constant(1.0), Constant(1.0)])
    assert len(once.train(1)) == 1
    with pytest.raises(FederationError, match="was stopped; make another, or use `async with` and `run`"):
        once.train(1)
    assert issubclass(NotEnoughSenders, ValueError)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"defence": "krum", "f": 3}, NotEnoughSenders, r"krum\(f=3\) needs at least 9 senders, got 6"),
        ({"topology": "ring", "defence": "krum", "f": 1}, NotEnoughSenders, r"at least 5 senders, got 3"),
        ({"defence": "krum", "f": 1, "fraction": 0.5}, NotEnoughSenders, r"at least 5 senders, got 3"),
        ({"f": -1}, FederationError, "f must be >= 0, got -1"),
        ({"fraction": 0}, FederationError, "fraction must be > 0 and <= 1, got 0"),
        ({"fraction": float("nan")}, FederationError, "fraction must be > 0 and <= 1, got nan"),
        ({"deadline": 0}, FederationError, "deadline must be > 0 seconds, or None, got 0"),
        ({"patience": -1.0}, FederationError, "patience must be > 0 seconds, or None, got -1.0"),
        ({"quorum": 7}, FederationError, "quorum must be 1 to 6, the nodes that train, got 7"),
        ({"quorum": 0}, FederationError, "quorum must be 1 to 6, the nodes that train, got 0"),
        ({"roles": {0: "trian"}}, FederationError, r"node 0 has no role 'trian' in 'trian'; did you mean train\?"),
        ({"byzantine": [9]}, FederationError, "no node 9; there are 0, 1, 2, 3, 4, 5"),
    ],
)
def test_settings_that_cannot_work_are_told_at_once(
    settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        Federation([Constant(1.0) for _ in range(6)], **settings)


def test_no_node_may_speak_as_the_supervisor() -> None:
    with pytest.raises(FederationError, match="no node may have the id 'supervisor'"):
        Federation({"supervisor": Constant(1.0), "b": Constant(1.0)})


def test_gossip_mixes_by_the_weights_that_the_edges_have() -> None:
    def mixed(graph: Any) -> list[float]:
        nodes = [Constant(0.0, start) for start in (1.0, 2.0, 6.0)]
        Federation(nodes, graph, "gossip").train(1)
        return [round(float(node.x[0]), 9) for node in nodes]

    w = np.array([[0.8, 0.2, 0.0], [0.2, 0.4, 0.4], [0.0, 0.4, 0.6]])
    assert mixed(w) == [1.2, 3.4, 4.4]
    edges = w - np.diag(w.diagonal())
    assert mixed(edges > 0) == mixed("line")  # by Metropolis-Hastings: there are no weights
    with pytest.raises(SpecError, match=r"weights of node 1's neighbours sum to 1\.2, and may to at most 1"):
        mixed(edges * 2)


def learners(n: int, **settings: Any) -> list[LearnerNode]:
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(3, 4, generator=generator) * 3
    nodes = []
    for i in range(n):
        y = torch.randint(3, (60,), generator=generator)
        x = centres[y] + torch.randn(60, 4, generator=generator)
        model = make_model("softmax", (4,), 3)
        nodes.append(LearnerNode(model, (x, y), test=(x, y), batch_size=20, lr=0.3, seed=i, **settings))
    return nodes


@pytest.mark.parametrize(
    ("graph", "exchange", "defence", "f"),
    [
        ("star", "gradients", "nnm | trimmed_mean", 2),
        ("star", "updates", "nnm | trimmed_mean", 2),
        ("full", "gradients", "nnm | trimmed_mean", 2),
        ("k_regular:6", "gradients", "trimmed_mean", 2),
    ],
)
def test_learners_learn_among_liars(graph: str, exchange: Any, defence: str, f: int) -> None:
    torch.manual_seed(0)
    nodes: list[Any] = [*learners(7, local_steps=3 if exchange == "updates" else 1)]
    nodes += [AttackNode("sign_flip(scale=4)") for _ in range(f)]
    federation = Federation(nodes, graph, defence, f=f, exchange=exchange, evaluate_every=15)
    history = federation.train(15)
    assert history[-1].metrics["accuracy"] > 0.9
    if graph == "star":
        assert len(history[-1].digests) == 1
        liars = sum(history[-1].weights.get(id, 0.0) for id in (7, 8))
        assert liars < 0.12  # of 2/9, were they believed


def test_the_same_seed_gives_the_same_models_bit_by_bit() -> None:
    digests = []
    for _ in range(2):
        nodes = learners(4, momentum=0.9)
        Federation(nodes, "ring", "gossip", evaluate_every=0).train(5)
        digests.append([node.digest() for node in nodes])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 4


class Untold(Constant):
    def evaluate(self) -> dict[str, float]:
        raise OSError("no test data")

    def digest(self) -> str:
        raise OSError("no digest")


def test_a_node_that_cannot_be_evaluated_costs_its_answer_alone() -> None:
    history = Federation([Constant(1.0), Constant(1.0), Untold(1.0)]).train(2)
    assert [report.metrics["x"] for report in history] == [-1.0, -2.0]
    assert history[-1].events[2] in ("OSError: no test data", "OSError: no digest")
    assert list(history[-1].digests.values()) == [(0, 1)]
