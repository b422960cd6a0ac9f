"""Versions of what nodes publish: read without being used up, in order, in bounded memory."""

import asyncio

import pytest
import torch

from byzflow.errors import FederationError, MessageTimeout
from byzflow.federation.federation import Federation
from byzflow.federation.versions import VersionStore
from tests.federation.mortal import Mortal


def test_versions_are_read_in_order_and_not_used_up():
    async def main():
        store = VersionStore(keep=3)
        assert store.update_version("a", model=torch.ones(2), loss=0.5) == 1
        assert store.update_version("b", model=torch.zeros(2)) == 1
        assert store.update_version("a", model=torch.full((2,), 2.0), loss=0.25) == 2
        for _ in range(3):
            b, a = await store.pull_version(["b", "a"])
            assert b["model"].tolist() == [0, 0]
            assert (a["model"].tolist(), a["loss"]) == ([2, 2], 0.25)
        assert (await store.pull_version(["a"], number=1))[0]["loss"] == 0.5
        (a,) = await store.pull_version(["a"])
        a["model"] += 1
        assert (await store.pull_version(["a"]))[0]["model"].tolist() == [2, 2]

    asyncio.run(main())


def test_what_is_stored_does_not_change_with_the_model():
    store, model = VersionStore(), torch.ones(2)
    store.update_version("a", model=model)
    model += 1
    assert asyncio.run(store.pull_version(["a"]))[0]["model"].tolist() == [1, 1]


def test_memory_is_bounded_and_equal_tensors_are_stored_once():
    store = VersionStore(keep=2)
    model = torch.randn(1000)
    for id in range(50):
        for _ in range(10):
            store.update_version(id, model=model.clone(), again=model)
    assert store.bytes == 4000
    store.update_version("shape", model=model.reshape(10, 100))
    assert store.bytes == 8000
    for k in range(100):
        store.update_version("other", model=torch.full((1000,), float(k)))
    assert store.bytes == 4 * 4000
    for id in [*range(50), "shape", "other"]:
        for _ in range(2):
            store.update_version(id)
    assert store.bytes == 0
    with pytest.raises(FederationError, match="version 1 of 0 is gone: 11 to 12 are kept"):
        asyncio.run(store.pull_version([0], number=1))
    with pytest.raises(FederationError, match="keep"):
        VersionStore(0)


def test_who_asks_early_waits_and_a_timeout_names_the_late():
    async def main():
        store = VersionStore()
        asking = asyncio.create_task(store.pull_version(["a", "b"], timeout=5))
        second = asyncio.create_task(store.pull_version(["b"], number=2))
        await asyncio.sleep(0)
        store.update_version("a", x=1)
        await asyncio.sleep(0)
        assert not asking.done()
        store.update_version("b", x=2)
        assert await asking == [{"x": 1}, {"x": 2}]
        store.update_version("b", x=3)
        assert await second == [{"x": 3}]
        with pytest.raises(MessageTimeout, match=r"no version of c, d within 0.01 s"):
            await store.pull_version(["a", "c", "d"], timeout=0.01)
        with pytest.raises(MessageTimeout, match=r"no version 9 of a within"):
            await store.pull_version(["a"], timeout=0.01, number=9)

    asyncio.run(main())


def test_a_subscriber_sees_each_version_once_and_misses_what_is_gone():
    async def main():
        store = VersionStore(keep=2)
        store.update_version("a", x=0)
        seen = []

        async def read():
            async for version in store.subscribe(["a", "b"]):
                seen.append((version.id, version.number, version.values["x"]))

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        store.update_version("a", x=1)
        store.update_version("c", x=9)
        await asyncio.sleep(0.01)
        assert seen == [("a", 2, 1)]
        for k in range(5):
            store.update_version("b", x=k)
        await asyncio.sleep(0.01)
        assert seen == [("a", 2, 1), ("b", 4, 3), ("b", 5, 4)]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(main())


def test_a_federations_models_can_be_pulled_at_any_time():
    async def main():
        nodes = [Mortal(k) for k in range(3)]
        async with Federation(nodes, "ring", "mean") as federation:
            await federation.run(2)
            for _ in range(2):
                pulled = await federation.pull_version([2, 0], timeout=5)
                assert [each["model"].tolist() for each in pulled] == [nodes[2].x.tolist(), nodes[0].x.tolist()]
            assert federation.versions.number(2) == 1
            running = asyncio.create_task(federation.run(3))
            await asyncio.sleep(0)
            assert len(await federation.pull_version(timeout=5)) == 3
            await running
            await federation.pull_version([2], timeout=5)
            assert federation.versions.number(2) >= 2
            federation.versions.update_version("notes", text="by hand")
            with pytest.raises(FederationError, match="no node 'x'"):
                await federation.pull_version(["x"])

    asyncio.run(main())
