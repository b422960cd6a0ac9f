"""`ucx://`: the contract, who is let in, and what the end of its process leaves. Without ucxx: only what is refused."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from byzflow.actors import ActorPool, ActorPoolConfig, SubTask, resolve
from byzflow.actors.backend import Backend
from byzflow.actors.conformance import CHECKS, NAMED, Account, _checked, doze, echo
from byzflow.actors.keys import Keys
from byzflow.actors.link import Frame
from byzflow.actors.peer import Budget
from byzflow.actors.remote import LinkBackend
from byzflow.actors.tcp import ActorServer, TcpBackend
from byzflow.actors.ucx import UcxBackend
from byzflow.actors.ucx_link import HEAD, UcxLink, library
from byzflow.actors.wire import PREFIX, Limits, encode
from byzflow.errors import ActorError, LinkClosed, WorkerDied

ALLOW = {f"byzflow.actors.conformance:{name}": each for name, each in NAMED.items()}
needs_ucxx = pytest.mark.skipif(importlib.util.find_spec("ucxx") is None, reason="ucxx is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A server and a client that trust each other."""
    root = tmp_path_factory.mktemp("keys")
    keys = {name: Keys.new(name, root / name) for name in ("server", "client")}
    keys["server"].trust("client", keys["client"].certificate)
    keys["client"].trust("server", keys["server"].certificate)
    return {name: each.folder for name, each in keys.items()}


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[ActorServer]:
    async with ActorServer("tcp://127.0.0.1:0", allow=ALLOW, ucx=True, trusted_fabric=True, **options) as server:
        yield server


def worker_of(server: ActorServer, **options: Any) -> UcxBackend:
    return UcxBackend(server.host, server.port, trusted_fabric=True, **options)


async def started(worker: Backend) -> Any:
    await worker.start("w")
    return worker


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def children() -> list[int]:
    """The processes of UCX that this one has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            if parent == os.getpid() and b"ucx_child" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


# ------------------------------------------------------------------------------------------ what is refused


def test_a_network_that_nobody_declared_trusted_is_not_used() -> None:
    for make in (lambda: resolve("ucx://127.0.0.1:7000"), lambda: ActorServer("tcp://127.0.0.1:0", ucx=True)):
        with pytest.raises(ActorError, match="no encryption and no authentication: trusted_fabric=True"):
            make()
    with pytest.raises(ActorError, match="is no address; write ucx://host:7000"):
        resolve("ucx://nowhere", trusted_fabric=True)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for make in (
        lambda: resolve("ucx://127.0.0.1:7000", trusted_fabric=True),
        lambda: ActorServer("tcp://127.0.0.1:0", ucx=True, trusted_fabric=True),
    ):
        with pytest.raises(ActorError, match=r"pip install 'byzflow\[ucx-cu13\]'"):
            make()


@needs_ucxx
def test_beyond_this_host_the_network_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UCX_NET_DEVICES", raising=False)
    with pytest.raises(ActorError, match="set UCX_NET_DEVICES"):
        UcxBackend("10.0.0.1", 7000, trusted_fabric=True)
    monkeypatch.setenv("UCX_NET_DEVICES", "mlx5_0:1")
    with pytest.raises(ActorError, match="is not this host: give keys=DIR"):
        UcxBackend("10.0.0.1", 7000, trusted_fabric=True)


@needs_ucxx
def test_a_server_that_was_not_told_to_has_no_ucx() -> None:
    async def main() -> None:
        async with ActorServer("tcp://127.0.0.1:0", allow=ALLOW) as server:
            with pytest.raises(ActorError, match="no UCX: start it with --ucx --trusted-fabric"):
                await worker_of(server).start("w")
        assert "ucxx" not in sys.modules or not children()

    asyncio.run(main())


@needs_ucxx
def test_what_a_process_could_not_import_is_refused() -> None:
    with pytest.raises(ActorError, match="has to be where it is"):
        ActorServer("tcp://127.0.0.1:0", allow={"os:getpid": echo}, ucx=True, trusted_fabric=True)
    with pytest.raises(ActorError, match="cannot be imported"):
        ActorServer("tcp://127.0.0.1:0", allow={"nowhere:f": echo}, ucx=True, trusted_fabric=True)


# ------------------------------------------------------------------------------------------------- it works


@needs_ucxx
def test_contract(folders: dict[str, Path]) -> None:
    async def main() -> None:
        async with served(keys=folders["server"]) as server:
            for check in CHECKS:
                await _checked(check, lambda: worker_of(server, keys=folders["client"]), {})
            await until(lambda: not server.workers)
            assert not server.refused

    asyncio.run(main())
    assert not children()


@needs_ucxx
def test_large_tensors_of_all_dtypes_cross_without_encryption_too() -> None:
    async def main() -> None:
        async with served() as server:
            worker = await started(worker_of(server))
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8):
                x = torch.arange(40_000_000 // dtype.itemsize).to(dtype).reshape(-1, 8)
                got = await worker.call(echo, (x,))
                assert (got.dtype, got.shape) == (x.dtype, x.shape)
                assert torch.equal(got, x)
            many = {f"layer{k}": torch.full((k % 7, 3), float(k)) for k in range(300)}
            got = await worker.call(echo, (many,))
            assert all(torch.equal(got[name], each) for name, each in many.items())
            for length in (HEAD - 100, HEAD, 3 * HEAD, 60_000):  # headers of one message and of two
                assert await worker.call(echo, ("x" * length,)) == "x" * length
            odd = [np.zeros(0), np.arange(1, dtype=np.int8), np.zeros((2, 0, 3))]
            assert [each.shape for each in await worker.call(echo, (odd,))] == [each.shape for each in odd]
            await worker.close()
            await until(lambda: not server.workers)
            assert not server.refused

    asyncio.run(main())


@needs_ucxx
def test_several_workers_of_a_pool_work_at_once() -> None:
    async def main() -> None:
        async with served() as server:
            url = server.url.replace("tcp", "ucx", 1)
            async with ActorPool([ActorPoolConfig(url, 2, options={"trusted_fabric": True})]) as pool:
                x = torch.randn(300_001)
                got = await pool.run_many([SubTask(echo, (x + k,)) for k in range(20)])
                assert all(torch.equal(each, x + k) for k, each in enumerate(got))
            await until(lambda: not server.workers)
            assert not server.refused

    asyncio.run(main())


@needs_ucxx
def test_nothing_is_left_behind() -> None:
    def open_files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        async with served() as server:
            worker = await started(worker_of(server))
            assert await worker.call(echo, (1,)) == 1
            await worker.close()

    asyncio.run(main())
    before = open_files()
    asyncio.run(main())
    assert open_files() <= before
    assert not children()
    assert not [thread for thread in threading.enumerate() if "UCX" in thread.name]


# ----------------------------------------------------------------------------------- who and what is let in


@needs_ucxx
def test_only_the_token_opens_and_only_once() -> None:
    async def main() -> None:
        async with served() as server:
            client = worker_of(server)
            control = await client.enter("w")
            port, token = await client.granted(control)
            ucxx = await library()

            async def come(shown: bytes) -> Any:
                endpoint = await ucxx.create_endpoint("127.0.0.1", port, connect_timeout=30)
                if shown:
                    await endpoint.send(shown)
                return endpoint

            def refused() -> dict[str, int]:
                return {} if not server.refused else next(iter(server.refused.values()))

            strangers = [await come(shown) for shown in (b"", bytes(32), b"short", b"x" * 100)]
            await until(lambda: sum(refused().values()) == 4)  # the silent one after a while
            assert refused() == {"a wrong token": 2, "no token": 2}
            link = UcxLink(await come(token), Limits(), "server", Budget(1 << 20), control)
            assert (await link.recv()).kind == "hello"  # who has it is let in all the same
            strangers.append(await come(token))
            await until(lambda: "a token that was used" in refused())
            assert sum(refused().values()) == 5
            for each in strangers:
                await each.close()
            await link.close()
            await until(lambda: not server.workers)

    asyncio.run(main())


HOSTILE = {
    "another program": b"GET / HTTP/1.1",
    "an endless body": PREFIX.pack(b"bzf1", 10, 2**63),
    "a header that is not there": PREFIX.pack(b"bzf1", 100, 0),
    "a frame from later": PREFIX.pack(b"bzf1", 10, 0) + msgspec.msgpack.encode([7, "x", 1, None, []]),
    "too long": b"x" * 2 * HEAD,
}


@needs_ucxx
def test_hostile_frames_end_their_own_worker_alone() -> None:
    async def main() -> None:
        async with served() as server:
            honest = await started(worker_of(server))
            for name, message in HOSTILE.items():
                hostile = await started(worker_of(server))
                await link_of(hostile)._endpoint.send(message)
                with pytest.raises(WorkerDied):
                    await hostile.call(doze, (10.0,))
                assert await honest.call(echo, (name,)) == name
                await hostile.close()
            await until(lambda: server.workers == 1)
            await honest.close()
            reasons = [reason for each in server.refused.values() for reason in each]
            assert len(reasons) == len(HOSTILE) - 1, reasons  # UCX itself refuses what is too long

    asyncio.run(main())


def link_of(worker: LinkBackend) -> UcxLink:
    assert worker._rpc is not None
    assert isinstance(worker._rpc.link, UcxLink)
    return worker._rpc.link


@needs_ucxx
def test_a_body_that_is_shorter_than_announced_shows_nothing_of_the_receiver() -> None:
    async def main() -> None:
        async with served() as server:
            worker = await started(worker_of(server))
            link = link_of(worker)
            ones = await worker.call(echo, (np.ones(1000, np.uint8),))  # memory that was used
            assert ones.sum() == 1000
            send, sizes = link._endpoint.send, []

            async def shorter(piece: Any) -> None:
                sizes.append(len(piece))
                await send(piece[:8] if len(piece) == 1000 else piece)

            link._endpoint.send = shorter
            got = await worker.call(echo, (np.ones(1000, np.uint8),))
            assert 1000 in sizes
            assert got.sum() == 8
            await worker.close()

    asyncio.run(main())


@needs_ucxx
def test_the_death_of_a_process_leaves_the_server_and_the_others() -> None:
    async def main() -> None:
        async with served() as server:
            plain = await started(TcpBackend(server.host, server.port))
            other = await started(worker_of(server))
            mine = set(children())
            worker = await started(worker_of(server))
            (pid,) = set(children()) - mine
            number, _ = await worker.create(Account, (), {})
            waiting = asyncio.create_task(worker.invoke(number, "wait", (), {}))
            await asyncio.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(WorkerDied):
                async with asyncio.timeout(10):
                    await waiting
            with pytest.raises(WorkerDied):
                await worker.call(echo, (1,))
            assert await plain.call(echo, (2,)) == 2
            assert await other.call(echo, (3,)) == 3
            fresh = await started(worker_of(server))
            assert await fresh.call(echo, (torch.ones(100_000),)) is not None
            for each in (plain, other, worker, fresh):
                await each.close()
            await until(lambda: not server.workers)
            counted = [reason for reasons in server.refused.values() for reason in reasons]
            assert counted == ["the UCX process of a worker died, with code -9"]

    asyncio.run(main())
    assert not children()


@needs_ucxx
def test_a_call_that_is_cancelled_while_its_arrays_are_sent_leaves_the_link_whole() -> None:
    async def main() -> None:
        async with served() as server:
            worker = await started(worker_of(server))
            x = torch.randn(5_000_000)
            for pause in (0.0, 0.001, 0.01):
                task = asyncio.create_task(worker.call(echo, (x,)))
                await asyncio.sleep(pause)
                task.cancel()
                await asyncio.wait([task])
            assert torch.equal(await worker.call(echo, (x,)), x)
            await worker.close()

    asyncio.run(main())


@needs_ucxx
def test_frames_arrive_whole_and_in_order() -> None:
    async def main() -> None:
        async with served() as server:
            worker = await started(worker_of(server))
            link = link_of(worker)
            got = await asyncio.gather(*(worker.call(echo, ([k, torch.full((k * 997,), k)],)) for k in range(60)))
            assert all(number == k and bool((x == k).all()) for k, (number, x) in enumerate(got))
            assert link.stats.frames_out == link.stats.frames_in - 1 == 60  # and the hello
            await worker.close()
            with pytest.raises(Exception, match="closed"):
                await link.send(Frame("x", 1))

    asyncio.run(main())


# --------------------------------------------------------------------------------- the budget, without UCX


class Endpoint:
    """What a link knows of UCX: messages one after the other into memory that it gives."""

    def __init__(self, *frames: Frame) -> None:
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.asked = 0  # bytes of arrays
        for sequence, frame in enumerate(frames):
            head, bodies, _ = encode(frame, sequence, Limits())
            for message in (head.ljust(HEAD, b"\0"), *map(bytes, bodies)):
                self.messages.put_nowait(message)

    async def recv(self, memory: Any) -> None:
        self.asked += len(memory) if len(memory) != HEAD else 0
        message = await self.messages.get()
        if message is None:
            raise ConnectionError("aborted")
        memoryview(memory)[: len(message)] = message

    def abort(self) -> None:
        self.messages = asyncio.Queue()
        self.messages.put_nowait(None)


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_all_links_of_a_peer_have_one_budget() -> None:
    async def main() -> None:
        frames = [Frame("x", k, np.full(1000, k, np.uint8)) for k in range(4)]
        budget = Budget(2500)  # room for two frames of 1024 bytes
        ends = [Endpoint(*frames), Endpoint(*frames)]
        links = [UcxLink(end, Limits(), "peer", budget) for end in ends]
        await settled()
        assert (budget.used, sum(end.asked for end in ends)) == (2048, 2000)

        async def taken(link: UcxLink) -> None:
            for k in range(4):
                frame = await link.recv()
                assert (frame.number, frame.body.tolist()) == (k, [k] * 1000)
                assert budget.used <= budget.total

        await asyncio.wait_for(asyncio.gather(*map(taken, links)), 5)
        assert budget.used == 0
        for end in ends:
            end.messages.put_nowait(None)
        for link in links:
            with pytest.raises(LinkClosed, match="peer is gone"):
                await link.recv()
            await link.close()

    asyncio.run(main())


def test_a_link_that_ends_gives_its_bytes_back_and_waits_no_longer() -> None:
    async def main() -> None:
        frames = [Frame("x", k, np.ones(1000, np.uint8)) for k in range(3)]
        budget = Budget(1500)
        first, second, third = (UcxLink(Endpoint(*frames), Limits(), "peer", budget) for _ in range(3))
        await settled()
        assert budget.used == 1024
        await second.close()  # which waits for room
        await first.close()
        await settled()
        assert budget.used == 1024
        assert (await third.recv()).number == 0
        await third.close()
        assert budget.used == 0
        large = UcxLink(Endpoint(Frame("x", 0, np.ones(2000, np.uint8))), Limits(), "peer", budget)
        with pytest.raises(LinkClosed, match="peer sent what is not allowed: 2048 bytes of arrays in one frame"):
            await large.recv()
        assert len(large.stats.refused) == 1
        await large.close()
        assert budget.used == 0

    asyncio.run(main())
