"""Workers that are found again after their connection broke."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from byzflow.actors import resolve
from byzflow.actors.conformance import Account
from byzflow.actors.keys import Keys
from byzflow.actors.ref import spawn
from byzflow.actors.tcp import ActorServer, TcpBackend
from byzflow.errors import ActorError, WorkerDied
from tests.actors.test_hub import folders, until  # noqa: F401
from tests.actors.test_tcp import ALLOW, served


def cut(server: ActorServer) -> None:
    for links in server.hub.links.values():
        for link in links:
            link.refuse("the network broke")


class Slow:
    """Counts, and takes its time."""

    runs = 0

    async def run(self, seconds: float) -> int:
        Slow.runs += 1
        await asyncio.sleep(seconds)
        return Slow.runs


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
def test_objects_are_found_again(encrypted: bool, folders: dict[str, Path]) -> None:  # noqa: F811
    async def main() -> None:
        async with served(keep=5.0, keys=folders["server"] if encrypted else None) as server:
            worker: Any = resolve(server.url, keep=5.0, **({"keys": folders["one"]} if encrypted else {}))
            await worker.start("w")
            account = await spawn(Account, 5.0, backend=worker)
            for k in range(3):
                assert await account.add(1.0) == 6.0 + k
                lost: Any = worker._rpc
                cut(server)
                await until(lambda lost=lost: lost.ended)  # then the next call waits
            assert await account.add(1.0) == 9.0
            await worker.close()
            await until(lambda: not server._kept._seats)
            with pytest.raises(WorkerDied):
                await account.add(1.0)

    asyncio.run(main())


def test_a_call_under_way_runs_at_most_once() -> None:
    async def main() -> None:
        Slow.runs = 0
        async with ActorServer("tcp://127.0.0.1:0", allow={f"{__name__}:Slow": Slow}, keep=5.0) as server:
            worker = resolve(server.url, keep=5.0)
            await worker.start("w")
            slow = await spawn(Slow, backend=worker)
            call = asyncio.create_task(slow.run(5.0))
            await until(lambda: Slow.runs == 1)
            cut(server)
            with pytest.raises(WorkerDied):
                await call
            assert await slow.run(0.0) == 2
            await worker.close()

    asyncio.run(main())


def test_what_is_gone_is_said_to_be_gone() -> None:
    async def main() -> None:
        async with served(keep=5.0) as server:
            worker = resolve(server.url, keep=5.0)
            await worker.start("w")
            account = await spawn(Account, 5.0, backend=worker)
            port = server.port
        async with ActorServer(f"tcp://127.0.0.1:{port}", allow=ALLOW, keep=5.0):  # restarted
            with pytest.raises(WorkerDied, match=r"the server was restarted, .*its objects are gone"):
                await account.add(1.0)
            await worker.close()
        async with served(keep=0.1) as server:
            worker = resolve(server.url, keep=0.3)
            await worker.start("w")
            account = await spawn(Account, 5.0, backend=worker)
            server.hub._server.close()
            cut(server)
            await until(lambda: not server._kept._seats)  # nothing is kept for longer
            with pytest.raises(WorkerDied, match=r"not reached again within 0\.3 s"):
                await account.add(1.0)
            await worker.close()
        async with served() as server:
            worker: Any = resolve(server.url, keep=1.0)
            with pytest.raises(ActorError, match="keeps no workers: start it with --keep"):
                await worker.start("w")
            assert worker._rpc.ended

    asyncio.run(main())


def test_a_token_is_of_use_to_its_owner_alone(folders: dict[str, Path]) -> None:  # noqa: F811
    async def main() -> None:
        async with served(keep=5.0, keys=folders["server"]) as server:
            one: Any = TcpBackend(server.host, server.port, keys=folders["one"], keep=5.0)
            two: Any = TcpBackend(server.host, server.port, keys=folders["two"])
            for worker in (one, two):
                await worker.start("w")
            account = await spawn(Account, 5.0, backend=one)
            for token in (one._token, "", "0" * 32):
                with pytest.raises(ActorError, match="no worker is kept under this token"):
                    await two._ask("rejoin", token)
            with pytest.raises(ActorError, match="has no object 1"):
                await two.invoke(1, "add", (1.0,), {})
            assert await account.add(1.0) == 6.0
            await one.close()
            await two.close()

    asyncio.run(main())


def test_few_workers_of_one_owner_wait() -> None:
    async def main() -> None:
        async with served(keep=5.0, each=3) as server:
            for _ in range(8):
                worker: Any = TcpBackend(server.host, server.port)
                await worker.start("w")
                await worker._ask("keep")
                await worker.close()
            await until(lambda: len(server._kept._seats) == 3)

    asyncio.run(main())


def test_a_link_that_rejoins_many_workers_or_its_own_keeps_none_for_ever() -> None:
    """One that rejoined its own was closed by that, and its worker ended twice."""

    async def main() -> None:
        async with served(keep=0.3) as server:
            workers: list[Any] = [TcpBackend(server.host, server.port) for _ in range(4)]
            for worker in workers:
                await worker.start("w")
            tokens = [await worker._ask("keep") for worker in workers[:3]]
            await asyncio.gather(*(workers[3]._ask("rejoin", token) for token in tokens))
            with pytest.raises(ActorError, match="is reached by this very link"):
                await workers[3]._ask("rejoin", tokens[2])
            await workers[3].close()
            await until(lambda: not server._kept._seats)
            for worker in workers:
                await worker.close()

    asyncio.run(main())


def test_another_trusted_peer_cannot_take_the_place_of_a_server(tmp_path: Path) -> None:
    """Neither at first, where the name is given, nor when a link is dialled again."""
    keys = {name: Keys.new(name, tmp_path / name) for name in ("lab", "rival", "me")}
    for name in ("lab", "rival"):
        keys["me"].trust(name, keys[name].certificate)
        keys[name].trust("me", keys["me"].certificate)

    async def main() -> None:
        mine = {"keys": keys["me"].folder, "keep": 5.0}
        async with served(keep=5.0, keys=keys["lab"].folder) as lab:
            worker: Any = TcpBackend(lab.host, lab.port, **mine)
            await worker.start("w")
            account = await spawn(Account, 5.0, backend=worker)
            port = lab.port
        async with ActorServer(f"tcp://127.0.0.1:{port}", allow=ALLOW, keep=5.0, keys=keys["rival"].folder):
            with pytest.raises(WorkerDied, match=f"127.0.0.1:{port} is answered by rival, who is not lab"):
                await account.add(1.0)
            await worker.close()
            with pytest.raises(ActorError, match="is answered by rival, who is not lab"):
                await TcpBackend("127.0.0.1", port, **mine, peer="lab").start("w")
            other: Any = TcpBackend("127.0.0.1", port, **mine, peer="rival")
            await other.start("w")
            await other.close()

    asyncio.run(main())
