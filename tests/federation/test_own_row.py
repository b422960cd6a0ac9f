"""Rules that move a node's own row: whose row that is when the node has none to send."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from byzflow.errors import FederationError
from byzflow.federation.federation import Federation
from byzflow.federation.nodes import ByzantineNode
from byzflow.federation.remote_peer import RemotePeer
from byzflow.gossip.cluster import Clusters
from byzflow.spec import parse
from tests.federation.small import Valued
from tests.federation.test_remote_peer import network, together

RULES = ("cs_plus", "gts", "clipped_gossip(tau=1)", "monna(reference_index=0)")


class Liar(ByzantineNode):
    """Sends a model far off, and shows it to who asks."""

    def byzantine_gradient(self, x: Tensor, y: Tensor, honest_grads: Sequence[Tensor] | None = None) -> Tensor:
        return torch.full((2,), 1e6)

    def get_parameters(self) -> Tensor:
        return torch.full((2,), 1e6)


class Broken(Valued):
    """Has no half step to send."""

    def half_step(self) -> Tensor:
        raise RuntimeError("no data")


class Modelless(Broken):
    """Nor a model."""

    def get_parameters(self) -> Tensor:
        raise RuntimeError("no model")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("last", "roles"), [(Broken(3), {}), (Valued(3), {4: "eval"})])
def test_a_node_without_a_half_step_goes_on_from_its_model_not_from_its_first_neighbour(
    rule: str, last: Valued, roles: dict[Any, str]
) -> None:
    last.x = torch.full((2,), 3.0)
    nodes = [Liar(), Valued(0), Valued(1), Valued(2), last]
    Federation(nodes, "full", rule, f=1, roles=roles, patience=5.0).train(2)
    assert 0 <= float(last.x[0]) <= 3.5


def test_a_node_with_nothing_to_go_on_from_takes_no_step_and_says_so() -> None:
    nodes = [Liar(), Valued(0), Valued(1), Valued(2), Modelless(3)]
    history = Federation(nodes, "full", "cs_plus", f=1, patience=5.0).train(1)
    assert nodes[4].x.tolist() == [3.0, 3.0]  # type: ignore[attr-defined]
    assert "own vector" in history[0].problem


def test_a_node_without_a_half_step_that_hears_few_is_not_led_by_the_liars_among_them() -> None:
    nodes = [Liar(), Liar(), Valued(0), Broken(1), Broken(3)]
    Federation(nodes, "full", "trimmed_mean", f=2, quorum=3, patience=5.0).train(2)
    assert all(0 <= float(node.x[0]) <= 3 for node in nodes[2:])  # type: ignore[attr-defined]


class Odd(Valued):
    """Sends what is no vector."""

    def half_step(self) -> Any:
        return self.made


@pytest.mark.parametrize("rule", ["cs_plus", "trimmed_mean"])
@pytest.mark.parametrize(
    "made", [[3.0, 3.0], np.ones(2), torch.ones(1, 2), torch.ones(2).long(), torch.ones(2).to_sparse()]
)
def test_what_is_no_vector_costs_its_node_alone(rule: str, made: Any) -> None:
    odd = Odd(3)
    odd.made = made  # type: ignore[attr-defined]
    history = Federation([Liar(), Valued(0), Valued(1), Valued(2), odd], "full", rule, f=1, patience=5.0).train(2)
    assert history[1].errors.keys() == {4}
    assert "no vector of floating numbers" in history[1].errors[4]
    assert 0 <= float(odd.x[0]) <= 3


@pytest.mark.parametrize("lie", [torch.zeros(3), torch.full((2,), math.nan), torch.zeros(2).double(), "words"])
def test_a_heads_model_that_does_not_fit_leaves_its_members_to_their_own(lie: Any) -> None:
    class Head(Liar):
        def half_lie(self, honest: Sequence[Tensor], place: int, f: int) -> Any:
            return lie

    nodes = [Head(), *map(Valued, (1, 1, 1, 5, 5))]
    Federation(nodes, Clusters(groups=[[0, 1, 2, 3], [4, 5]], period=1), "median", patience=5.0).train(1)
    assert [node.x.tolist() for node in nodes[1:4]] == [[1.0, 1.0]] * 3  # type: ignore[attr-defined]


def test_liars_alone_are_no_federation() -> None:
    with pytest.raises(FederationError, match="no honest node"):
        Federation([Liar(), Liar()], "full", "mean")


@pytest.mark.parametrize("rule", RULES)
def test_who_comes_later_begins_with_no_liars_model(rule: str) -> None:
    async def main() -> Valued:
        new = Valued(0)
        async with Federation([Liar(), *map(Valued, range(4))], "full", rule, f=1, patience=5.0) as federation:
            await federation.round()
            await federation.add(9, new)
        return new

    assert 0 <= float(asyncio.run(main()).x[0]) <= 3


def test_peers_over_links_mix_by_the_same_weights_as_in_one_process() -> None:
    grid = "grid(rows=2)"
    made = replace(network(honest=6, topology=grid, rounds=2, quorum=2), rule=parse("gossip"), f=0)
    outcomes = asyncio.run(together([RemotePeer(made, each.id) for each in made.members]))
    nodes: dict[Any, Any] = {each.id: made.node(each, "honest") for each in made.members}
    Federation(nodes, grid, "gossip", quorum=2, evaluate_every=0).train(2)
    assert [each.digest for each in outcomes] == [node.digest() for node in nodes.values()]
