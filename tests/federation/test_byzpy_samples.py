"""The code samples of ByzPy's own pages run with other imports, and do what the page says."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import byzflow
from byzflow.errors import SpecError
from byzflow_compat import byzpy
from tests.federation.small import Fixed, Valued


def test_overview_execution_flow() -> None:
    """docs/source/overview.md, "Execution Flow"."""
    from byzflow_compat.byzpy import (
        ActorPool,
        ActorPoolConfig,
        CoordinateWiseMedian,
        NodeScheduler,
        make_single_operator_graph,
    )

    gradients = [torch.full((5,), float(k)) for k in range(9)]

    async def page() -> Any:
        # Create graph
        aggregator = CoordinateWiseMedian()
        graph = make_single_operator_graph(node_name="agg", operator=aggregator, input_keys=("gradients",))

        # Create pool and scheduler
        pool = ActorPool([ActorPoolConfig(backend="thread", count=4)])
        await pool.start()
        scheduler = NodeScheduler(graph, pool=pool)

        # Execute
        results = await scheduler.run({"gradients": gradients})
        aggregated = results["agg"]
        await pool.shutdown()
        return aggregated

    assert asyncio.run(page()).tolist() == [4.0] * 5


def test_getting_started_basic_usage() -> None:
    """docs/source/getting_started.md, "Basic Usage": aggregators, attacks, pre-aggregators."""
    from byzflow_compat.byzpy import Bucketing, CoordinateWiseMedian, EmpireAttack

    aggregator = CoordinateWiseMedian(chunk_size=4096)
    gradients = [torch.randn(1000) for _ in range(10)]
    result = aggregator.aggregate(gradients)
    assert result.shape == (1000,)
    torch.testing.assert_close(result, torch.stack(gradients).quantile(0.5, dim=0))

    attack = EmpireAttack(scale=-1.0)
    honest_grads = [torch.randn(100) for _ in range(5)]
    malicious = attack.apply(honest_grads=honest_grads)
    torch.testing.assert_close(malicious, -torch.stack(honest_grads).mean(0))

    preagg = Bucketing(bucket_size=4)
    vectors = [torch.randn(100) for _ in range(10)]
    buckets = preagg.pre_aggregate(vectors)
    assert len(buckets) == 3
    assert all(v.shape == (100,) for v in buckets)


def test_getting_started_extending() -> None:
    """docs/source/getting_started.md, "Extending ByzPy": an aggregator, an attack and a pre-aggregator of one's own."""
    from byzflow_compat.byzpy import (
        Aggregator,
        Attack,
        DistributedByzantineNode,
        NodeScheduler,
        ParameterServer,
        PreAggregator,
        make_single_operator_graph,
    )

    class MyAggregator(Aggregator):
        name = "my-aggregator"

        def aggregate(self, gradients: Any) -> Any:
            return torch.stack(gradients).amin(0)

    class MyAttack(Attack):
        uses_honest_grads = True

        def apply(self, *, honest_grads: Any = None, **kwargs: Any) -> Any:
            return 10 * honest_grads[0]

    class MyPreAggregator(PreAggregator):
        name = "my-pre-aggregator"

        def pre_aggregate(self, xs: Any) -> Any:
            return [x + 1 for x in xs if x[0] < 50]

    async def page() -> None:
        liar = DistributedByzantineNode(actor_pool=[byzpy.ActorPoolConfig("thread")], attack=MyAttack())
        nodes = [Fixed([7.0]), Fixed([8.0])]
        async with ParameterServer(nodes, [liar], MyAggregator(), MyPreAggregator()) as server:
            assert (await server.round()).tolist() == [8.0]
            assert not server.report.errors
        async with ParameterServer(nodes, [liar], byzpy.CoordinateWiseMedian(), MyPreAggregator()) as server:
            assert (await server.round()).tolist() == [8.5]  # of 8 and 9: the attack's 70 is dropped
        await liar.shutdown_distributed()
        graph = make_single_operator_graph(node_name="agg", operator=MyAggregator(), input_keys=("gradients",))
        rows = {"gradients": [torch.tensor([3.0]), torch.tensor([1.0])]}
        assert (await NodeScheduler(graph).run(rows))["agg"].tolist() == [1.0]

    asyncio.run(page())


def test_docstring_of_the_parameter_server() -> None:
    """byzpy.engine.parameter_server.ps.ParameterServer, "Examples"."""
    from byzflow_compat.byzpy import ByzantineNodeActor, HonestNodeActor, MultiKrum, ParameterServer, set_actor

    async def page() -> None:
        honest_actors = [
            await HonestNodeActor.spawn(Fixed, backend=set_actor("thread"), kwargs={"gradient": [1.0, float(k)]})
            for k in range(6)
        ]
        byz_actors = [await ByzantineNodeActor.spawn(Far, backend="thread") for _ in range(2)]
        aggregator = MultiKrum(f=2, q=5)
        ps = ParameterServer(honest_nodes=honest_actors, byzantine_nodes=byz_actors, aggregator=aggregator)
        for _ in range(100):
            gradient = await ps.round()
        await ps.shutdown()
        assert gradient[0] == 1.0
        assert 0 <= gradient[1] <= 5

    asyncio.run(page())


class Far(byzpy.ByzantineNode):
    """As the original's pages write one: a tensor of the honest vectors' shape."""

    def next_batch(self) -> tuple[Tensor, Tensor]:
        return torch.empty(0), torch.empty(0, dtype=torch.long)

    def byzantine_gradient(self, x: Tensor, y: Tensor, honest_grads: Any = None) -> Tensor:
        return torch.full_like(honest_grads[0], 1e6)

    def apply_server_gradient(self, grad_vec: Tensor) -> None:
        pass


def test_docstring_of_peer_to_peer() -> None:
    """byzpy.engine.peer_to_peer.train.PeerToPeer, "Examples"."""
    from byzflow_compat.byzpy import HonestNodeActor, PeerToPeer, Topology

    async def page(**more: Any) -> list[float]:
        honest_actors = [await HonestNodeActor.spawn(Valued, float(k), backend="thread") for k in range(5)]
        byz_actors: list[Any] = []
        topology = Topology.ring(n=5, k=1)
        p2p = PeerToPeer(honest_nodes=honest_actors, byzantine_nodes=byz_actors, topology=topology, lr=0.01, **more)
        await p2p.bootstrap()
        for _ in range(100):
            await p2p.round()
        values = [float((await node.get_parameters())[0]) for node in honest_actors]
        await p2p.shutdown()
        return values

    assert asyncio.run(page()) == [1.0, 1.0, 2.0, 3.0, 3.0]  # where medians of a ring come to rest
    assert asyncio.run(page(aggregator="mean")) == pytest.approx([2.0] * 5)


def test_docstrings_of_node_applications() -> None:
    """byzpy.engine.node.application: NodeApplication, HonestNodeApplication, ByzantineNodeApplication, "Examples"."""
    from byzflow_compat.byzpy import (
        ActorPoolConfig,
        ByzantineNodeApplication,
        CoordinateWiseMedian,
        EmpireAttack,
        HonestNodeApplication,
        NodeApplication,
        make_single_operator_graph,
    )

    grad1, grad2, grad3 = (torch.tensor([float(k)]) for k in (1, 2, 6))

    async def page() -> None:
        app = NodeApplication(name="node0", actor_pool=[ActorPoolConfig(backend="thread", count=4)])
        await app.shutdown()

        honest = HonestNodeApplication(name="honest_node0", actor_pool=[ActorPoolConfig(backend="thread", count=2)])
        graph = make_single_operator_graph(node_name="agg", operator=CoordinateWiseMedian(), input_keys=("gradients",))
        honest.register_pipeline("aggregate", graph)
        result = await honest.aggregate(gradients=[grad1, grad2, grad3])
        assert result.tolist() == [2.0]
        await honest.shutdown()

        liar = ByzantineNodeApplication(name="byz_node0", actor_pool=[ActorPoolConfig(backend="thread", count=1)])
        attack = make_single_operator_graph(node_name="attack", operator=EmpireAttack(), input_keys=("honest_grads",))
        liar.register_pipeline("attack", attack)
        malicious_grad = await liar.run_attack(inputs={"honest_grads": [grad1, grad2, grad3]})
        assert malicious_grad.tolist() == [-3.0]
        await liar.shutdown()

    asyncio.run(page())


def test_docstring_of_the_message_aware_scheduler() -> None:
    """byzpy.engine.graph.scheduler.MessageAwareNodeScheduler, "Examples"."""
    from byzflow_compat.byzpy import GraphInput, GraphNode, MessageAwareNodeScheduler

    async def page() -> None:
        node = GraphNode("twice", lambda g: 2 * g, {"g": GraphInput.from_message("gradient")})
        scheduler = MessageAwareNodeScheduler(byzpy.ComputationGraph([node]), pool=None)
        running = asyncio.create_task(scheduler.run({}))
        scheduler.deliver_message("gradient", payload=torch.ones(2))
        assert (await running)["twice"].tolist() == [2.0, 2.0]
        scheduler.deliver_message("gradient", payload=3)
        assert await scheduler.wait_for_message("gradient") == 3

    asyncio.run(page())


def small_cnn_node() -> type[Any]:
    """examples/ps/nodes.py and examples/p2p/nodes.py, with a small model on data that need no download."""
    from byzflow_compat.byzpy import (
        ActorPoolConfig,
        CoordinateWiseMedian,
        DistributedHonestNode,
        P2PHonestMixin,
    )

    class DistributedP2PHonestNode(P2PHonestMixin, DistributedHonestNode):
        def __init__(self, *, indices: Any, lr: float = 0.05, momentum: float = 0.9, pool_backend: str = "thread"):
            agg = CoordinateWiseMedian()
            super().__init__(
                actor_pool=[ActorPoolConfig(backend=pool_backend, count=1, name="worker")],
                aggregator=agg,
                metadata={"pool_backend": pool_backend},
                name=f"honest-{pool_backend}",
            )
            torch.manual_seed(0)
            self.model = nn.Linear(4, 3)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
            self.criterion = nn.CrossEntropyLoss()
            self.y = torch.as_tensor(indices) % 3
            self.x = nn.functional.one_hot(self.y, 4).float()
            self.p2p_agg = agg

        def next_batch(self) -> tuple[Tensor, Tensor]:
            return self.x, self.y

        def local_honest_gradient(self, *, x: Tensor, y: Tensor) -> Tensor:
            self.model.zero_grad(set_to_none=True)
            loss = self.criterion(self.model(x), y)
            loss.backward()
            return torch.cat([p.grad.view(-1) for p in self.model.parameters() if p.grad is not None])

        def apply_server_gradient(self, aggregated_grad: Tensor) -> None:
            offset = 0
            for p in self.model.parameters():
                p.grad = aggregated_grad[offset : offset + p.numel()].view_as(p).clone()
                offset += p.numel()
            self.optimizer.step()

        def dump_state_dict(self) -> Any:
            return {k: v.detach().cpu() for k, v in self.model.state_dict().items()}

        def loss(self) -> float:
            with torch.no_grad():
                return float(self.criterion(self.model(self.x), self.y))

    return DistributedP2PHonestNode


def byzantine_node() -> type[Any]:
    from byzflow_compat.byzpy import ActorPoolConfig, DistributedByzantineNode, EmpireAttack, P2PByzantineMixin

    class DistributedP2PByzNode(P2PByzantineMixin, DistributedByzantineNode):
        def __init__(self, *, scale: float = -1.0, pool_backend: str = "thread") -> None:
            attack = EmpireAttack(scale=scale)
            super().__init__(
                actor_pool=[ActorPoolConfig(backend=pool_backend, count=1, name="worker")],
                attack=attack,
                metadata={"pool_backend": pool_backend},
                name=f"byz-{pool_backend}",
            )
            self.attack = attack

        def next_batch(self) -> tuple[Tensor, Tensor]:
            return torch.empty(0), torch.empty(0, dtype=torch.long)

        def apply_server_gradient(self, aggregated_grad: Tensor) -> None:
            pass

    return DistributedP2PByzNode


@pytest.mark.parametrize("style", ["ps", "p2p"])
def test_examples_with_distributed_nodes(style: str) -> None:
    """examples/ps/thread/mnist.py and examples/p2p/thread/mnist.py, on a small problem."""
    from byzflow_compat.byzpy import (
        ByzantineNodeActor,
        CoordinateWiseMedian,
        HonestNodeActor,
        ParameterServer,
        PeerToPeer,
        Topology,
        set_actor,
    )

    async def page() -> None:
        honest_actors = [
            await HonestNodeActor.spawn(
                small_cnn_node(), backend=set_actor("thread"), kwargs={"indices": range(k, 60, 4), "lr": 0.3}
            )
            for k in range(4)
        ]
        byz = [await ByzantineNodeActor.spawn(byzantine_node(), backend=set_actor("thread"), kwargs={"scale": -1.0})]
        before = await honest_actors[0].loss()
        runner: Any
        if style == "ps":
            runner = ParameterServer(honest_actors, byz, CoordinateWiseMedian(), update_byzantines=False)
        else:
            runner = PeerToPeer(honest_actors, byz, Topology.complete(5), lr=0.3)
        for _ in range(15):
            await runner.round()
        states = [await node.dump_state_dict() for node in honest_actors]
        if style == "ps":  # one model; in the original each node kept its own beginning
            assert all(torch.equal(state["weight"], states[0]["weight"]) for state in states)
        assert not runner.history[-1].errors
        assert await honest_actors[0].loss() < 0.7 * before
        for node in (*honest_actors, *byz):
            await node.shutdown_distributed()
        await runner.shutdown()

    asyncio.run(page())


ROWS = [torch.randn(20, generator=torch.Generator().manual_seed(k)) for k in range(10)]


@pytest.mark.parametrize(
    ("made", "spec"),
    [
        (lambda: byzpy.CoordinateWiseMedian(chunk_size=2048), "median"),
        (lambda: byzpy.CoordinateWiseTrimmedMean(f=2, chunk_size=2048), "trimmed_mean(f=2)"),
        (lambda: byzpy.MeanOfMedians(2, chunk_size=7), "mean-of-medians(f=2)"),
        (lambda: byzpy.Krum(f=2, chunk_size=16), "krum(f=2, neighbors=n-f-1, strict=false)"),
        (lambda: byzpy.MultiKrum(f=2, q=5, chunk_size=16), "multi-krum(f=2, m=5, neighbors=n-f-1, strict=false)"),
        (lambda: byzpy.GeometricMedian(tol=1e-6, max_iter=300, init="mean"), "geometric_median"),
        (lambda: byzpy.MinimumDiameterAveraging(2, chunk_size=3), "mda(f=2)"),
        (lambda: byzpy.MoNNA(2, reference_index=3), "monna(f=2, reference_index=3)"),
        (lambda: byzpy.SMEA(2, chunk_size=3), "smea(f=2)"),
        (lambda: byzpy.CenteredClipping(c_tau=1.0, M=10, init="zero"), "centered_clipping(tau=1.0, iterations=10)"),
        (lambda: byzpy.ComparativeGradientElimination(2), "cge(f=2)"),
        (lambda: byzpy.CAF(2, power_iters=5), "caf(f=2)"),
        (lambda: byzpy.Clipping(3.0, chunk_size=1), "clipping(c=3.0)"),
        (lambda: byzpy.ARC(2), "arc(f=2)"),
        (lambda: byzpy.NearestNeighborMixing(2, feature_chunk_size=5), "nnm(f=2)"),
    ],
)
def test_constructors_take_the_originals_arguments(made: Any, spec: str) -> None:
    """api_reference.md, aggregators and pre-aggregators: lists, stacked tensors, arrays and mappings; one result."""
    operator, expected = made(), byzflow.parse(spec)(ROWS)
    call = operator.pre_aggregate if hasattr(operator, "pre_aggregate") else operator.aggregate
    same = [torch.as_tensor(each) for each in expected]
    for rows in (ROWS, torch.stack(ROWS), torch.stack(ROWS).numpy()):
        got = [torch.as_tensor(np.asarray(each)) for each in call(rows)]
        torch.testing.assert_close(got, same)
    if call == operator.aggregate:
        named = call([{"weight": row[:8].view(2, 4), "bias": row[8:]} for row in ROWS])
        torch.testing.assert_close(torch.cat([named["weight"].flatten(), named["bias"]]), expected)


def test_centred_clipping_from_the_mean() -> None:
    """center_clipping.py, "Examples"."""
    aggregator = byzpy.CenteredClipping(c_tau=1.0, M=10, init="mean")
    around_mean = byzflow.parse("centered_clipping(tau=1.0, iterations=10)")(ROWS, center=torch.stack(ROWS).mean(0))
    torch.testing.assert_close(aggregator.aggregate(ROWS), around_mean)
    assert byzpy.CenteredClipping(c_tau=1.0, init="median").aggregate(ROWS).shape == (20,)
    with pytest.raises(SpecError, match="init is"):
        byzpy.CenteredClipping(c_tau=1.0, init="first")


def test_buckets_in_a_given_order() -> None:
    perm = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    buckets = byzpy.Bucketing(4, perm=perm, feature_chunk_size=3).pre_aggregate(ROWS)
    torch.testing.assert_close(buckets[0], torch.stack(ROWS[6:]).mean(0))
    assert len(buckets) == 3
    one, two = (byzpy.Bucketing(4, rng=random.Random(5)).pre_aggregate(ROWS) for _ in range(2))
    torch.testing.assert_close(one, two)


def test_every_attack_says_what_it_needs_and_makes_one_row() -> None:
    """api_reference.md, attacks."""
    model = nn.Linear(3, 2)
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    honest = [torch.randn(8) for _ in range(6)]
    kept = [row.clone() for row in honest]
    given: dict[str, Any] = {"model": model, "x": x, "y": y, "honest_grads": honest, "base_grad": honest[0]}
    mean = torch.stack(honest).mean(0)
    expected: dict[str, tuple[Any, str, Any]] = {
        "empire": (byzpy.EmpireAttack(scale=-2.0), "honest_grads", -2 * mean),
        "sign flip": (byzpy.SignFlipAttack(), "base_grad", -honest[0]),
        "sign flip, scaled": (byzpy.SignFlipAttack(scale=3.0), "base_grad", 3 * honest[0]),
        "little": (byzpy.LittleAttack(f=2), "honest_grads", None),
        "little of N": (byzpy.LittleAttack(f=2, N=8), "honest_grads", None),
        "gaussian": (byzpy.GaussianAttack(seed=1), "honest_grads", None),
        "inf": (byzpy.InfAttack(), "honest_grads", torch.full((8,), torch.inf)),
        "mimic": (byzpy.MimicAttack(epsilon=2), "honest_grads", honest[2]),
        "label flip": (byzpy.LabelFlipAttack(num_classes=2), "model", None),
    }
    for name, (attack, needs, row) in expected.items():
        flags = {
            "honest_grads": attack.uses_honest_grads,
            "base_grad": attack.uses_base_grad,
            "model": attack.uses_model_batch,
        }
        assert [flag for flag, used in flags.items() if used] == [needs], name
        made = attack.apply(**given)
        assert made.shape == (8,), name
        if row is not None:
            torch.testing.assert_close(made, row, msg=name)
    assert all(map(torch.equal, honest, kept))
    little, of_eight = byzpy.LittleAttack(f=2), byzpy.LittleAttack(f=2, N=8)
    torch.testing.assert_close(little.apply(honest_grads=honest), of_eight.apply(honest_grads=honest))
    noise = byzpy.GaussianAttack(seed=1)
    first, second = (noise.apply(honest_grads=honest) for _ in range(2))
    assert not torch.equal(first, second)
    flipped = byzpy.LabelFlipAttack(num_classes=2).apply(model=model, x=x, y=y)
    torch.testing.assert_close(byzpy.LabelFlipAttack(mapping={0: 1, 1: 0}).apply(model=model, x=x, y=y), flipped)
    torch.testing.assert_close(byzpy.LabelFlipAttack(num_classes=2, scale=2).apply(model=model, x=x, y=y), 2 * flipped)
    with pytest.raises(SpecError, match="num_classes or a mapping"):
        byzpy.LabelFlipAttack()


def test_run_operator_and_executor() -> None:
    """The package's own two public names."""

    async def page() -> None:
        median = byzpy.CoordinateWiseMedian()
        assert torch.equal(await byzpy.run_operator(median, {"gradients": ROWS}), median.aggregate(ROWS))
        assert torch.equal(await byzpy.OperatorExecutor(median).run({"gradients": ROWS}), median.aggregate(ROWS))

    asyncio.run(page())


def test_topologies() -> None:
    ring = byzpy.Topology.ring(6, 2)
    assert ring.neighbours(0) == (1, 2, 4, 5)
    assert byzpy.Topology.ring(2).neighbours(0) == (1,)
    assert byzpy.Topology.complete(4).neighbours(1) == (0, 2, 3)
    directed: Any = byzpy.Topology(3, [(0, 1), (1, 2), (0, 1)])
    assert (directed.neighbours(0), directed.in_neighbours(0), directed.in_neighbours(2)) == ((1,), (), (1,))


def test_all_names_are_there() -> None:
    assert all(hasattr(byzpy, name) for name in byzpy.__all__)
    assert len(set(byzpy.__all__)) == len(byzpy.__all__)
