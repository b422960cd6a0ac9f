"""The digits app from Flower's default of two clients up to three hundred."""

from __future__ import annotations

import pytest

from byzflow_flower import LocalGrid
from byzflow_flower.digits.client_app import app
from byzflow_flower.digits.server_app import federate
from byzflow_flower.digits.settings import Settings


@pytest.mark.parametrize(("clients", "f", "attack"), [(2, 0, "none"), (300, 75, "alie")])
def test_the_digits_app_with_few_and_many_clients(clients: int, f: int, attack: str) -> None:
    settings = Settings(f=f, attack=attack, num_server_rounds=1, local_epochs=1)
    strategy = federate(LocalGrid(dict.fromkeys(range(clients), app), run_config=settings.run_config()), settings)
    (audit,) = strategy.audit
    assert not audit.rejected
    assert sorted(audit.weights) == list(range(clients))
    assert sum(audit.weights.values()) == pytest.approx(1)
