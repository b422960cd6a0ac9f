"""The digits app's data and settings."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from byzflow.errors import ByzflowError
from byzflow_flower.digits import task
from byzflow_flower.digits.settings import Settings

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower_digits" / "pyproject.toml"


def labels(seed: int = 0) -> np.ndarray:
    (_, y), _ = task.load(seed)
    return y.numpy()


@pytest.mark.parametrize("alpha", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("clients", [1, 2, 10, 200])
def test_split_gives_each_sample_to_one_client(alpha: float, clients: int) -> None:
    parts = task.split(labels(), clients, alpha, seed=0)
    assert len(parts) == clients
    assert min(map(len, parts)) >= 1
    assert sorted(np.concatenate(parts)) == list(range(len(labels())))


def test_split_follows_the_seed() -> None:
    first, again, other = (task.split(labels(), 10, 1.0, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_small_alpha_makes_clients_differ() -> None:
    def largest_share(alpha: float) -> float:
        parts = task.split(labels(), 10, alpha, seed=0)
        return float(np.mean([np.bincount(labels()[part]).max() / len(part) for part in parts]))

    assert largest_share(0.1) > 0.4 > 0.2 > largest_share(100.0)


def test_too_many_clients_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be dealt out"):
        task.split(labels(), 100_000, 1.0, seed=0)


def test_the_test_set_is_held_out() -> None:
    (x, y), (test_x, test_y) = task.load(0)
    assert len(y) + len(test_y) == 1797
    assert x.min() == 0
    assert x.max() == 1
    everything = {tuple(row) for row in torch.cat([x, test_x]).tolist()}
    assert len(everything) == 1797  # no two digits are equal, so none is in both parts


def test_flipping_labels_twice_gives_them_back_and_leaves_them_alone() -> None:
    y = torch.arange(10)
    assert task.flip_labels(y).tolist() == list(range(9, -1, -1))
    assert task.flip_labels(task.flip_labels(y)).equal(y)
    assert y.tolist() == list(range(10))


def test_model_and_training_follow_the_seed_and_leave_torch_alone() -> None:
    state = torch.random.get_rng_state()
    (x, y), test = task.load(0)

    def trained(seed: int) -> torch.nn.Module:
        model = task.make_model(seed)
        task.train(model, (x[:200], y[:200]), epochs=3, lr=0.2, batch=32, seed=(seed, 5))
        return model

    first, again = trained(1), trained(1)
    assert all(a.equal(b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert torch.random.get_rng_state().equal(state)
    assert task.evaluate(first, test)[1] > task.evaluate(task.make_model(1), test)[1] + 0.2


def test_the_example_has_the_demos_settings() -> None:
    config = tomllib.loads(EXAMPLE.read_text())["tool"]["flwr"]["app"]["config"]
    assert config == Settings().run_config()


def test_settings_survive_the_run_config() -> None:
    settings = Settings(aggregator="krum", attack="alie(z=1.5)", f=1, dirichlet_alpha=0.3)
    assert Settings.of({**settings.run_config(), "not-ours": 1}) == settings


@pytest.mark.parametrize(
    ("attack", "f", "forges"),
    [
        ("none", 3, False),
        ("label-flip", 3, False),
        ("wrong_keys", 3, False),
        ("ipm(tau=3)", 3, True),
        ("ipm", 0, False),
    ],
)
def test_which_attacks_need_the_honest_updates(attack: str, f: int, forges: bool) -> None:
    assert Settings(attack=attack, f=f).forges_replies is forges


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_server_rounds": 0}, "num-server-rounds must be an integer >= 1, got 0"),
        ({"f": True}, "f must be an integer >= 0, got True"),
        ({"learning_rate": float("nan")}, "learning-rate must be a number > 0, got nan"),
        ({"dirichlet_alpha": 0}, "dirichlet-alpha must be a number > 0, got 0"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ByzflowError) as raised:
        Settings(**changes)  # type: ignore[arg-type]
    assert str(raised.value) == message
