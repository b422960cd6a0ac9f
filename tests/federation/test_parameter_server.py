"""The parameter server: every rule on every pool, rows by node, and faults that cost only their node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import byzflow
from byzflow.actors import ActorPool, ActorPoolConfig
from byzflow.custom import Aggregator, PreAggregator
from byzflow.errors import FederationError, SpecError
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.node_actor import ByzantineNodeActor, HonestNodeActor
from byzflow.federation.nodes import AttackNode, PoisonedNode
from byzflow.federation.parameter_server import ParameterServer
from byzflow.federation.progress import train_with_progress
from tests.federation.small import Fixed, Shouting

RULES = [
    "median",
    "trimmed_mean",
    "mean_of_medians",
    "krum",
    "multi-krum",
    "geometric_median",
    "mda",
    "monna(reference_index=0)",
    "smea",
    "centered_clipping(tau=1.0)",
    "cge",
    "caf",
    "mean",
]
GRADIENTS = [[1.0, 2.0, 3.0], [1.1, 2.1, 2.9], [0.9, 1.8, 3.1], [1.0, 2.2, 3.0], [1.2, 2.0, 2.8], [30.0, -9.0, 0.0]]


async def one_round(rule: str, pool: ActorPool | None, dtype: torch.dtype) -> Tensor:
    async with ParameterServer([Fixed(g, dtype) for g in GRADIENTS], (), rule, f=1, actor_pool=pool) as server:
        return await server.round()


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", ["thread:", "process:"])
def test_every_rule_gives_a_tensor_on_every_pool(kind: str, workers: int) -> None:
    """For 8 of 12 rules a round of the original raised TypeError, and two gave arrays."""

    async def main() -> None:
        pool = ActorPool(ActorPoolConfig(kind, workers)) if workers else None
        for rule in RULES:
            for dtype in (torch.float32, torch.float64):
                value = await one_round(rule, pool, dtype)
                expected = byzflow.aggregate(rule, torch.tensor(GRADIENTS, dtype=dtype), f=1)
                assert type(value) is Tensor, rule
                assert (value.dtype, value.device.type, value.shape) == (dtype, "cpu", (3,)), rule
                assert torch.allclose(value, expected), rule
        if pool is not None:
            await pool.shutdown()

    asyncio.run(main())


def test_the_pool_computes_the_rule() -> None:
    async def main() -> None:
        async with ActorPool(ActorPoolConfig("process:", 1)) as pool:
            nodes = [Fixed(g) for g in GRADIENTS]
            async with ParameterServer(nodes, (), Where(), actor_pool=pool) as server:
                there = await server.round()
        async with ParameterServer(nodes, (), Where()) as server:
            here = await server.round()
        assert int(here[0]) == os_pid() != int(there[0])

    asyncio.run(main())


def os_pid() -> int:
    import os

    return os.getpid()


class Where(Aggregator):
    """Says in which process it runs."""

    def aggregate(self, rows: Sequence[Any]) -> Any:
        import os

        return torch.full_like(rows[0], float(os.getpid()))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_rows_are_ordered_by_node_whoever_is_first(order: list[int]) -> None:
    """In the original `monna(reference_index=0)` trusted the fastest."""

    async def main() -> None:
        nodes = [Fixed([float(k)], delay=0.02 * order[k]) for k in range(4)]
        async with ParameterServer(nodes, (), "monna(reference_index=0, f=1)") as server:
            assert (await server.round()).item() == 1.0  # the mean of 0, 1, 2: those nearest to node 0
            assert list(server.report.weights) == [0, 1, 2, 3]

    asyncio.run(main())


class Failing(Fixed):
    async def honest_gradient_for_next_batch(self) -> Tensor:  # type: ignore[override]
        raise ValueError("no data\nto be found")


def test_an_exception_and_a_wrong_length_cost_only_their_node() -> None:
    async def main() -> None:
        nodes = [Fixed([1.0, 1.0]), Fixed([2.0, 2.0]), Fixed([3.0, 3.0]), Failing([0.0, 0.0]), Fixed([1.0, 2.0, 3.0])]
        nodes[4].x = torch.zeros(2)
        async with ParameterServer(nodes, (), "median", f=2, compare_digests=False) as server:
            assert torch.equal(await server.round(), torch.tensor([2.0, 2.0]))
            report = server.report
            assert report.errors[3] == "ValueError: no data to be found"
            assert report.missing == (3,)
            assert report.rejected == {4: "3 numbers of float32, not 2 numbers of float32"}

    asyncio.run(main())


def test_a_straggler_does_not_make_the_round_long_and_catches_up() -> None:
    async def main() -> None:
        late = Fixed([9.0], delay=1.2)
        nodes = [Fixed([1.0]), Fixed([2.0]), Fixed([3.0]), late]
        server = ParameterServer(nodes, (), "median", quorum=3, deadline=0.15)
        began = time.perf_counter()
        for _ in range(4):
            assert (await server.round()).item() == 2.0
            assert server.report.missing == (3,)
            assert list(server.report.digests.values()) == [(0, 1, 2)]
        assert time.perf_counter() - began < 1.1  # four rounds, each shorter than the straggler
        late.delay = 0.0
        await asyncio.sleep(1.3 - (time.perf_counter() - began))
        assert (await server.round()).item() == 2.5
        assert server.report.missing == ()
        assert list(server.report.digests.values()) == [(0, 1, 2, 3)]  # it took all the steps that it had missed
        assert late.asked == 2  # and was not asked for gradients that would come too late
        await server.shutdown()

    asyncio.run(main())


class Asleep(Fixed):
    """Never answers; on its worker it is what a frozen machine is here."""

    def honest_gradient_for_next_batch(self) -> Tensor:  # type: ignore[override]
        time.sleep(self.delay)
        return self.gradient


def test_a_silent_worker_is_left_out_round_after_round() -> None:
    """One silent worker made every round of the original's remote server wait 60 s, and skip its step."""

    async def main() -> None:
        nodes = [await HonestNodeActor.spawn(Fixed, [float(k)], backend="thread") for k in range(4)]
        silent = await HonestNodeActor.spawn(Asleep, [9.0], delay=4.0, backend="thread")
        server = ParameterServer([*nodes, silent], (), "median", f=1, deadline=0.1)
        began = time.perf_counter()
        for number in range(20):  # more than a worker may be behind
            assert (await server.round()).item() == 1.5
            assert server.report.missing == (4,), number
        assert time.perf_counter() - began < 4.0
        await server.shutdown()

    asyncio.run(main())


def test_models_are_equal_after_each_round_and_at_the_start() -> None:
    def node(seed: int, k: int) -> LearnerNode:
        torch.manual_seed(seed)
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(k))
        return LearnerNode(nn.Linear(4, 2), (x, (x[:, 0] > 0).long()), lr=0.3, momentum=0.9, batch_size=5, seed=k)

    async def main() -> None:
        model = node(1, 99)
        async with ParameterServer([node(1, k) for k in range(4)], (), "median", model=model) as server:
            for _ in range(3):
                await server.round()
                (digest,) = server.report.digests
                assert digest == model.digest()  # the same step, momentum and all, at the server and its workers
        with pytest.raises(FederationError, match=r"begin with 2 different models \(0, 1 \| 2\)"):
            await ParameterServer([node(1, 0), node(1, 1), node(2, 2)]).round()
        strangers = [node(1, 0), node(2, 1)]
        async with ParameterServer(strangers, begin="copy") as server:
            await server.round()
            assert len(server.report.digests) == 1
        with pytest.raises(FederationError, match="the server's model"):
            await ParameterServer([node(1, 0), node(1, 1)], model=node(2, 2)).round()

    asyncio.run(main())


@pytest.mark.parametrize("update", [False, True])
def test_byzantine_nodes_see_the_honest_rows_and_are_updated_if_said(update: bool) -> None:
    async def main() -> None:
        liar = Shouting()
        async with ParameterServer(
            [Fixed([1.0]), Fixed([2.0]), Fixed([3.0])], [liar], "median", None, update
        ) as server:
            assert (await server.round()).item() == 1.5  # of -200, 1, 2, 3
        assert len(liar.given) == update

    asyncio.run(main())


class Mine(Aggregator):
    name = "mine"

    def __init__(self, f: int) -> None:
        self.f = f

    def aggregate(self, rows: Sequence[Any]) -> Any:
        return sorted(rows, key=float)[self.f]


class Doubled(PreAggregator):
    def pre_aggregate(self, rows: Sequence[Any]) -> Any:
        return [2 * row for row in rows]


def test_rules_and_steps_of_ones_own() -> None:
    async def main() -> None:
        nodes = [Fixed([1.0]), Fixed([2.0]), Fixed([3.0]), Failing([0.0])]
        odd = Fixed([0.0])
        odd.gradient = torch.zeros(5)
        async with ParameterServer([*nodes, odd], [AttackNode("huge")], Mine(2), f=2) as server:
            assert (await server.round()).item() == 2.0  # f shrinks by the one of another length
        async with ParameterServer(nodes, (), "median", Doubled(), f=1) as server:
            assert (await server.round()).item() == 4.0
        async with ParameterServer(nodes, (), "median", ["nnm(f=0)", Doubled()], f=1) as server:
            assert (await server.round()).item() == 4.0
        with pytest.raises(SpecError, match="subclass byzflow"):
            ParameterServer(nodes, (), max)  # type: ignore[arg-type]

    asyncio.run(main())


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_nodes_on_workers(backend: str) -> None:
    async def main() -> None:
        honest = [await HonestNodeActor.spawn(Fixed, backend=backend, args=([float(k)],)) for k in (1, 2)]
        honest.append(await HonestNodeActor.spawn(Fixed, [3.0], backend=backend, kwargs={"delay": 0.01}))
        liar = await ByzantineNodeActor.spawn(AttackNode, "sign_flip(scale=100)", backend=backend)
        server = ParameterServer(honest, [liar], "median")
        assert (await server.round()).item() == 1.5
        assert (await honest[0].get_parameters()).item() == -1.5
        await server.shutdown()
        await server.shutdown()

    asyncio.run(main())


def test_no_step_is_an_error_and_the_next_round_may_be_better() -> None:
    async def main() -> None:
        nodes: list[Any] = [Failing([1.0]) for _ in range(3)]
        server = ParameterServer(nodes, (), "krum", f=0)
        with pytest.raises(FederationError, match="round 1 took no step: no reply counts"):
            await server.round()
        for node in nodes:
            node.__class__ = Fixed
        assert (await server.round()).item() == 1.0
        await server.shutdown()
        with pytest.raises(FederationError, match="no honest node"):
            ParameterServer([])

    asyncio.run(main())


def test_weights_count_in_rules_that_take_them() -> None:
    async def main() -> None:
        async with ParameterServer([Fixed([1.0]), Fixed([4.0])], (), "mean", weights={0: 2.0, 1: 1.0}) as server:
            assert (await server.round()).item() == 2.0

    asyncio.run(main())


def test_two_servers_side_by_side() -> None:
    """Global registries let two runs of the original overwrite each other."""

    async def main() -> None:
        servers = [ParameterServer([Fixed([value]), Fixed([value])], [Shouting()], "median") for value in (1.0, 5.0)]
        for _ in range(5):
            assert [g.item() for g in await asyncio.gather(*(s.round() for s in servers))] == [1.0, 5.0]
        await asyncio.gather(*(server.shutdown() for server in servers))

    asyncio.run(main())


def test_poisoned_data_trains_along() -> None:
    async def main() -> None:
        poisoned = Fixed([7.0])
        async with ParameterServer([Fixed([1.0]), Fixed([1.0])], [PoisonedNode(Steady([7.0]))], "mean") as server:
            assert (await server.round()).item() == pytest.approx(3.0)
        assert poisoned.asked == 0

    asyncio.run(main())


class Steady(Fixed):
    def honest_gradient_for_next_batch(self) -> Tensor:  # type: ignore[override]
        return self.gradient


def test_training_with_a_bar() -> None:
    from io import StringIO

    from rich.console import Console

    async def main() -> None:
        screen = Console(file=StringIO(), force_terminal=True, width=100)
        async with ParameterServer([Fixed([1.0]), Fixed([1.0])]) as server:
            asked: list[int] = []

            def evaluate() -> dict[str, float]:
                asked.append(1)
                return {"accuracy": len(asked) / 10}

            told = await train_with_progress(server, 5, evaluate, 2, console=screen)
            assert told == [(2, {"accuracy": 0.1}), (4, {"accuracy": 0.2}), (5, {"accuracy": 0.3})]
            assert len(server.history) == 5
            assert await train_with_progress(server, 0) == []
            with pytest.raises(FederationError, match="eval_interval >= 1"):
                await train_with_progress(server, 1, eval_interval=0)
        assert "5/5" in screen.file.getvalue()  # type: ignore[attr-defined]
        assert "accuracy 0.3" in screen.file.getvalue()  # type: ignore[attr-defined]

    asyncio.run(main())
