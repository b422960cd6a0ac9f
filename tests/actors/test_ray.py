"""Workers on Ray: the contract, on a small cluster of this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from byzflow.actors import ActorPool, ActorPoolConfig, SubTask, resolve
from byzflow.actors.conformance import CHECKS, _checked, echo
from byzflow.errors import ActorError, WorkerDied

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        warnings.simplefilter("ignore")
        import ray

        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False, _temp_dir=folder)
        yield
        ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_contract() -> None:
    async def main() -> None:
        for check in CHECKS:
            await _checked(check, "ray:", {})

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore")
def test_a_killed_actor_is_replaced() -> None:
    async def main() -> None:
        async with ActorPool([ActorPoolConfig("ray:", 2)]) as pool:
            pid = await pool.run_subtask(SubTask(os.getpid))
            os.kill(pid, signal.SIGKILL)
            tasks = [SubTask(echo, (k,), max_retries=3) for k in range(20)]
            assert await pool.run_many(tasks) == list(range(20))

    asyncio.run(main())


def test_wrong_options_are_refused() -> None:
    options: dict[str, Any]
    for url, options in (("ray:x", {}), ("ray:", {"cpus": 2})):
        with pytest.raises(ActorError, match="a Ray worker is 'ray:'"):
            resolve(url, **options)
    with pytest.raises(WorkerDied, match="never started"):
        asyncio.run(resolve("ray:").call(echo, (1,)))
