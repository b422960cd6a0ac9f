"""Virtual nodes: cheap until they are needed, built once, here and on workers of their own or shared ones."""

import asyncio
import os
import time
import tracemalloc

import pytest

from byzflow.errors import FederationError
from byzflow.federation.virtual_node import VirtualNode
from byzflow.federation.workers import Workers


class Counted:
    made = 0

    def __init__(self, id=None, role=None, start=0):
        type(self).made += 1
        self.id, self.role, self.total, self.builds = id, role, start, []

    def build(self):
        self.builds.append((self.id, self.role))

    def add(self, amount):
        self.total += amount
        return self.total

    def about(self):
        return self.id, self.role, self.builds, os.getpid()


class Plain:
    def where(self):
        return os.getpid()


class Broken:
    def __init__(self):
        raise ValueError("no data")


def test_ten_thousand_are_cheap():
    tracemalloc.start()
    began = time.perf_counter()
    nodes = [VirtualNode(Counted, k, kwargs={"start": k}) for k in range(10_000)]
    seconds = time.perf_counter() - began
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert seconds < 1
    assert held < 200 * 2**20
    assert not any(node.built for node in nodes)


def test_it_is_built_once_by_concurrent_callers():
    Counted.made = 0

    async def main():
        node = VirtualNode(Counted, "a", "train-eval", args=(), kwargs={"start": 5})
        assert not node.built
        assert node.handle is None
        handles = await asyncio.gather(*(node.build() for _ in range(20)))
        assert node.built
        assert all(handle is node.handle for handle in handles)
        assert node.handle.builds == [("a", "train-eval")]
        assert node.handle.add(1) == 6

    asyncio.run(main())
    assert Counted.made == 1


def test_a_template_takes_what_its_signature_has():
    async def main():
        assert (await VirtualNode(Plain, 3).build()).where() == os.getpid()
        assert (await VirtualNode(lambda config: config["lr"], 3, config={"lr": 0.5}).build()) == 0.5

    asyncio.run(main())


def test_what_fails_can_be_tried_again():
    async def main():
        node = VirtualNode(Broken, 0)
        for _ in range(2):
            with pytest.raises(ValueError, match="no data"):
                await node.build()
            assert not node.built

    asyncio.run(main())


@pytest.mark.parametrize("backend", ["thread:", "process:"])
def test_a_worker_of_its_own(backend):
    async def main():
        node = VirtualNode(Counted, 7, backend=backend)
        handle = await node.build()
        assert await handle.add(4) == 4
        id, role, builds, pid = await handle.about()
        assert (id, role, builds) == (7, "train", [(7, "train")])
        assert (pid == os.getpid()) == (backend == "thread:")
        await node.aclose()
        await node.aclose()
        assert not node.built

    asyncio.run(main())


def test_many_nodes_share_few_workers():
    async def main():
        async with Workers("process:", 2) as workers:
            nodes = [VirtualNode(Counted, k, pool=workers) for k in range(20)]
            handles = await asyncio.gather(*(node.build() for node in nodes))
            about = [await handle.about() for handle in handles]
            assert [each[0] for each in about] == list(range(20))
            assert len({each[3] for each in about}) == 2
            assert workers.nodes == [10, 10]
            assert await handles[3].add(2) == 2
            assert await handles[5].add(2) == 2

    asyncio.run(main())


def test_workers_need_a_count():
    with pytest.raises(FederationError, match="count >= 1, got 0"):
        Workers("thread:", 0)
