"""Pipelines by name: concurrent runs, pools that outlive event loops, and nodes made of them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from byzflow.actors import ActorPool, ActorPoolConfig
from byzflow.custom import Attack
from byzflow.errors import ActorError, FederationError, GraphError, SpecError
from byzflow.federation.applications import ByzantineNodeApplication, HonestNodeApplication, NodeApplication
from byzflow.federation.distributed import DistributedByzantineNode, DistributedHonestNode
from byzflow.federation.parameter_server import ParameterServer
from byzflow.graph import RemoteCallableOp, make_single_operator_graph
from byzflow_attacks.poisoned_data import gradient, label_flip

POOL = [ActorPoolConfig("thread:", count=2)]


def square(x: Any) -> Any:
    return x * x


def application(pool: Any = None, kind: type[NodeApplication] = NodeApplication) -> Any:
    app = kind(name="node0", actor_pool=pool)
    operator = RemoteCallableOp(square)
    app.register_pipeline("square", make_single_operator_graph(node_name="out", operator=operator, input_keys=("x",)))
    return app


@pytest.mark.parametrize("pool", [None, POOL, [ActorPoolConfig("process:")]])
def test_fifty_runs_at_once(pool: Any) -> None:
    """Concurrent runs of the original corrupted each other."""

    async def main() -> None:
        app = application(pool)
        results = await asyncio.gather(*(app.run_pipeline("square", {"x": k}) for k in range(50)))
        assert results == [{"out": k * k} for k in range(50)]
        await app.shutdown()
        await app.shutdown()

    asyncio.run(main())


def test_one_pool_serves_threads_and_several_event_loops() -> None:
    app = application(POOL)

    def from_a_loop(k: int) -> Any:
        return asyncio.run(app.run_pipeline("square", {"x": k}))["out"]

    def plainly(k: int) -> Any:
        return app.run_pipeline_sync("square", {"x": k})["out"]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(from_a_loop, range(10))) == [k * k for k in range(10)]
        assert list(threads.map(plainly, range(40))) == [k * k for k in range(40)]
    asyncio.run(app.shutdown())


def test_a_pool_that_was_started_elsewhere_stays_there() -> None:
    async def main() -> None:
        async with ActorPool(POOL) as pool:
            app = application(pool)
            assert await app.run_pipeline("square", {"x": 3}) == {"out": 9}
            assert await asyncio.to_thread(app.run_pipeline_sync, "square", {"x": 4}) == {"out": 16}
            with pytest.raises(ActorError, match="await run_pipeline"):
                app.run_pipeline_sync("square", {"x": 4})
            await app.shutdown()

    asyncio.run(main())


def test_names() -> None:
    app = application()
    assert app.list_pipelines() == ("square",)
    assert app.has_pipeline("square")
    with pytest.raises(GraphError, match=r"no pipeline 'sqare'; did you mean square\?"):
        app.run_pipeline_sync("sqare", {})
    with pytest.raises(GraphError, match="known: square"):
        app.run_pipeline_sync("aggregate", {})
    with pytest.raises(GraphError, match="missing graph inputs: x"):
        app.run_pipeline_sync("square", {})
    with pytest.raises(GraphError, match="has a pipeline 'square' already"):
        app.register_pipeline("square", make_single_operator_graph(node_name="a", operator=square, input_keys=("x",)))
    asyncio.run(app.shutdown())


def test_the_steps_know_where_they_run() -> None:
    from byzflow.graph import Operator

    class Context(Operator):
        def compute(self, inputs: Any, *, context: Any) -> Any:
            return dict(context.metadata)

    app = NodeApplication(name="a", metadata={"colour": "red", "rank": 1})
    graph = make_single_operator_graph(node_name="c", operator=Context(), input_keys=())
    app.register_pipeline("c", graph, metadata={"rank": 2})
    found = asyncio.run(app.run_pipeline("c", metadata={"round": 3}))["c"]
    assert found == {"node": "a", "pipeline": "c", "colour": "red", "rank": 2, "round": 3}


def test_the_names_of_honest_and_byzantine_nodes() -> None:
    honest = HonestNodeApplication(name="h")
    rows = [torch.tensor([float(k)]) for k in range(5)]
    median = make_single_operator_graph(node_name="m", operator="median", input_keys=("gradients",))
    honest.register_pipeline("aggregate", median)
    step = make_single_operator_graph(node_name="g", operator=lambda x, y: x + y, input_keys=("x", "y"))
    honest.register_pipeline("honest_gradient", step)
    liar = ByzantineNodeApplication(name="b")
    attack = make_single_operator_graph(node_name="a", operator="ipm(f=1, tau=1)", input_keys=("honest_grads",))
    liar.register_pipeline("attack", attack)

    async def main() -> None:
        assert (await honest.aggregate(gradients=rows)).item() == 2
        assert await honest.honest_gradient({"x": 1, "y": 2}) == 3
        assert torch.equal(await liar.run_attack(inputs={"honest_grads": rows}), torch.tensor([-2.0]))

    asyncio.run(main())
    assert honest.aggregate_sync(gradients=rows).item() == 2
    assert honest.honest_gradient_sync({"x": 1, "y": 2}) == 3
    assert liar.run_attack_sync(inputs={"honest_grads": rows}).shape == (1,)
    for app in (honest, liar):
        asyncio.run(app.shutdown())


class Small(DistributedHonestNode):
    def __init__(self, seed: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.generator = torch.Generator().manual_seed(seed)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        y = torch.arange(8) % 2
        return torch.randn(8, 3, generator=self.generator) + y[:, None], y

    def local_honest_gradient(self, *, x: Tensor, y: Tensor) -> Tensor:
        grads = gradient(self.model, nn.functional.cross_entropy, x, y)
        return torch.cat([each.flatten() for each in grads.values()])

    def apply_server_gradient(self, gradient: Tensor) -> None:
        self.set_parameters(self.get_parameters() - 0.5 * gradient)


class Flip(Attack):
    uses_model_batch = True

    def apply(self, *, model: Any = None, x: Any = None, y: Any = None, **others: Any) -> Any:
        grads = gradient(model, nn.functional.cross_entropy, x, label_flip(y, 2))
        return torch.cat([each.flatten() for each in grads.values()])


class SmallLiar(DistributedByzantineNode):
    def __init__(self, attack: Any, trains: bool = True) -> None:
        super().__init__(attack=attack, actor_pool=POOL)
        if trains:
            twin = Small(5)
            self.model, self.next_batch = twin.model, twin.next_batch  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("attack", "needs"),
    [
        ("ipm", ("honest_grads",)),
        ("sign_flip(f=1, knowledge=own)", ("base_grad",)),
        (Flip(), ("model", "x", "y")),
    ],
)
def test_attacks_are_given_what_their_flags_say(attack: Any, needs: tuple[str, ...]) -> None:
    async def main() -> None:
        liar = SmallLiar(attack)
        assert liar.needs == needs
        honest = [Small(k, actor_pool=POOL) for k in range(3)]
        async with ParameterServer(honest, [liar], "median", f=1) as server:
            for _ in range(3):
                assert (await server.round()).shape == (8,)
                assert not server.report.errors
                assert set(server.report.digests.values()) == {(0, 1, 2)}
        for node in (*honest, liar):
            await node.shutdown_distributed()

    asyncio.run(main())


def test_what_an_attack_lacks_is_said() -> None:
    liar = SmallLiar("sign_flip(f=1, knowledge=own)", trains=False)
    with pytest.raises(FederationError, match="needs base_grad: give the node a `model`"):
        liar.byzantine_gradient(torch.empty(0), torch.empty(0))
    with pytest.raises(FederationError, match="needs honest_grads"):
        SmallLiar("ipm").byzantine_gradient(torch.empty(0), torch.empty(0))
    with pytest.raises(FederationError, match="needs an attack, or a byzantine_gradient of its own"):
        SmallLiar(None)
    with pytest.raises(SpecError, match="is no attack"):
        SmallLiar("median")


def test_a_byzantine_gradient_of_ones_own_needs_no_attack() -> None:
    class Constant(DistributedByzantineNode):
        def byzantine_gradient(self, x: Any, y: Any, honest_grads: Any = None) -> Tensor:
            return 3 * honest_grads[0]

    assert Constant().byzantine_gradient_for_next_batch([torch.ones(2)]).tolist() == [3.0, 3.0]


def test_buffers_follow_their_policy() -> None:
    class Normed(Small):
        buffers = "mix"

        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    class Local(Normed):
        buffers = "local"

    assert len(Normed().get_parameters()) == 8 + 4 + 4
    assert len(Local().get_parameters()) == 8 + 4
    assert Normed().stepped(torch.ones(12))[12:].equal(torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_a_run_ends_the_pools_of_its_nodes() -> None:
    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("byzflow-")}

    async def main() -> None:
        nodes: list[Any] = [Small(0, actor_pool=POOL), Small(1, actor_pool=POOL)]
        server = ParameterServer(nodes, [SmallLiar("ipm")])
        await server.round()
        assert threads() > before
        await server.shutdown()

    before = threads()
    asyncio.run(main())
    assert threads() == before
