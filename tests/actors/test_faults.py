"""Each fault of the campaign, a few times: `python -m tests.campaigns.faults` repeats them by the hundred."""

from __future__ import annotations

import sys

import pytest

from tests.campaigns.faults import FAULTS, repeat

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are killed, and /proc says what is left")


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_everything_works_and_nothing_is_left(name: str) -> None:
    record = repeat(name, 2)
    assert not record.failures
    assert not record.left
