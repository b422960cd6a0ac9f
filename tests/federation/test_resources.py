"""Plans of resources never promise more than there is."""

import json
from collections import defaultdict
from fractions import Fraction

import pytest

from byzflow.errors import FederationError
from byzflow.federation.federation import Federation
from byzflow.federation.resources import plan
from tests.federation.mortal import Mortal


def exact(value):
    return Fraction(str(value))


@pytest.mark.parametrize("cpus", [0.5, 1, 2, 4, 8, 128])
@pytest.mark.parametrize("split", ["uniform", "random"])
def test_cpus_are_never_overcommitted(cpus, split):
    for n in range(1, 65):
        made = plan(n, cpus, 0, split, seed=n)
        shares = [exact(each.cpus) for each in made.bundles]
        assert len(shares) == n
        assert min(shares) > 0
        assert exact(made.broker) == min(Fraction(2), exact(cpus) / 10)
        assert sum(shares) + exact(made.broker) <= exact(cpus)
        assert sum(shares) + exact(made.broker) > exact(cpus) - Fraction(2 * n, 10_000)
        if split == "uniform":
            assert len(set(shares)) == 1


def test_random_shares_differ_and_depend_on_the_seed_alone():
    one, same, other = (plan(8, 4, 0, "random", seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert len({each.cpus for each in one.bundles}) == 8


@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
def test_gpus_are_never_overcommitted_card_by_card(gpus):
    for n in range(1, 65):
        for each in (None, 0.5, 0.25, 0.3, 1, 2):
            try:
                made = plan(n, 8, gpus, gpus_per_node=each)
            except FederationError as error:
                assert str(n) in str(error)  # noqa: PT017
                assert each is not None
                fit = int(1 / each) if each < 1 else 1 / each
                assert n > fit * gpus
                continue
            cards = defaultdict(Fraction)
            for bundle in made.bundles:
                assert bundle.gpus > 0
                for card in bundle.gpu_ids:
                    cards[card] += exact(bundle.gpus) / len(bundle.gpu_ids)
            assert max(cards.values()) <= 1
            assert max(cards) < gpus
            assert sum(exact(each.gpus) for each in made.bundles) <= gpus


def test_what_does_not_fit_is_told_with_numbers():
    with pytest.raises(FederationError, match=r"2 nodes with 1 CPUs each need 2, and the broker 0.2; there are 2"):
        plan(2, 2, 0, cpus_per_node=1)
    assert plan(2, 2, 0, cpus_per_node=0.9).bundles[0].cpus == 0.9
    with pytest.raises(FederationError, match=r"5 nodes with 0.5 of a GPU each: 2 fit on one, 4 on the 2"):
        plan(5, 2, 2, gpus_per_node=0.5)
    with pytest.raises(FederationError, match="3 nodes with 1 GPUs each need 3; there are 2"):
        plan(3, 2, 2, gpus_per_node=1)
    for wrong in ({"gpus_per_node": 1.5}, {"split": "even"}, {"strategy": "SCATTER"}, {"cpus_per_node": 0}):
        with pytest.raises(FederationError):
            plan(2, 2, 2, **wrong)
    for nodes, cpus, gpus in ((0, 1, 0), (1, 0, 0), (1, float("nan"), 0), (1, 1, -1), (20_000, 1, 0)):
        with pytest.raises(FederationError, match=str(nodes)):
            plan(nodes, cpus, gpus)


def test_without_a_gpu_nodes_run_on_cpus_and_this_is_said():
    with pytest.warns(UserWarning, match=r"no GPU: 2 nodes that ask for 0.5 each run on CPUs"):
        made = plan(2, 2, 0, gpus_per_node=0.5)
    assert [each.gpus for each in made.bundles] == [0, 0]
    assert plan(2, 2, 0).bundles[0].gpu_ids == ()


def test_a_plan_as_data():
    made = plan(3, 4, 1, strategy="SPREAD")
    assert json.loads(json.dumps(made.as_dict()))["strategy"] == "SPREAD"
    ray = made.for_ray()
    assert ray[0] == {"CPU": 0.4}
    assert ray[1:] == [{"CPU": 1.2, "GPU": 0.3333}] * 3


def test_a_federation_tells_its_plan_before_and_after_it_ran():
    federation = Federation([Mortal(0), Mortal(1)])
    assert len(federation.resources.bundles) == 2
    federation.train(1)
    assert len(federation.resources.bundles) == 2
