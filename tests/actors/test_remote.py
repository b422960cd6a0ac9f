"""Workers at the other end of a link, here over queues: the same contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Self

import pytest
import torch

from byzflow.actors import host as host_module
from byzflow.actors import remote as remote_module
from byzflow.actors import rpc as rpc_module
from byzflow.actors.conformance import CHECKS, Account, _checked, echo
from byzflow.actors.link import Frame, Link, MemoryLink
from byzflow.actors.remote import LinkBackend, Worker, serve
from byzflow.actors.rpc import Rpc
from byzflow.errors import (
    ActorError,
    LinkClosed,
    MailboxFull,
    NotEnoughSenders,
    RemoteError,
    WorkerDied,
    restored,
    told,
)
from byzflow.graph.messages import Message


class Queued(LinkBackend):
    scheme = "queued"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        return cls()

    async def connect(self, name: str) -> Link:
        self.here, there = MemoryLink.pair()
        self.serving = asyncio.create_task(serve(there, Worker(name)))
        return self.here


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Any) -> None:
    asyncio.run(_checked(check, Queued, {}))


def test_when_the_link_ends_what_waits_raises() -> None:
    async def main() -> None:
        worker = Queued()
        await worker.start("w")
        waiting = asyncio.create_task(worker.receive("never"))
        await asyncio.sleep(0.02)
        await worker.here.close()
        with pytest.raises(WorkerDied):
            await waiting
        with pytest.raises(WorkerDied):
            await worker.call(echo, (1,))
        await asyncio.wait_for(worker.serving, 5)
        await worker.close()

    asyncio.run(main())


def test_a_flood_of_requests_is_refused_not_kept() -> None:
    async def main() -> None:
        here, there = MemoryLink.pair(1000)
        gate = asyncio.Event()

        @asynccontextmanager
        async def handle(kind: str, arguments: list[Any]) -> AsyncIterator[None]:
            await gate.wait()
            yield

        server = Rpc(there, handle, limit=3)
        running = asyncio.create_task(server.run())
        client = Rpc(here, handle)
        reading = asyncio.create_task(client.run())
        asked = [asyncio.create_task(client.request("x")) for _ in range(10)]
        await asyncio.sleep(0.05)
        gate.set()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert outcomes.count(None) == 3
        assert sum(isinstance(each, ActorError) and "limit" in str(each) for each in outcomes) == 7
        await client.close()
        await asyncio.gather(running, reading)

    asyncio.run(main())


def test_a_request_that_is_cancelled_at_once_is_answered() -> None:
    """Before its task had made a step, or before it had gone out: who had asked waited for ever."""

    async def main() -> None:
        here, there = MemoryLink.pair(limit=2)
        serving = asyncio.create_task(serve(there, Worker("w")))
        await here.send(Frame("receive", 7, ["never", None]))
        await here.send(Frame("cancel", 7))
        answer = await asyncio.wait_for(here.recv(), 5)
        assert (answer.kind, answer.number) == ("error", 7)
        await here.close()
        await serving

        full, _ = MemoryLink.pair(limit=1)
        client = Rpc(full, lambda kind, arguments: nullcontext())
        asked = [asyncio.create_task(client.request("x")) for _ in range(2)]
        await asyncio.sleep(0.01)
        asked[1].cancel()  # it waits for room in the link
        await asyncio.wait(asked[1:], timeout=5)
        assert asked[1].cancelled()
        await client.close()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(main())


def test_two_requests_of_one_number_end_the_link() -> None:
    """The second hid the first, so that a peer could have any number of them in work."""

    async def main() -> None:
        here, there = MemoryLink.pair()
        serving = asyncio.create_task(serve(there, Worker("w")))
        for _ in range(2):
            await here.send(Frame("receive", 7, ["never", None]))
        with pytest.raises(LinkClosed):
            await asyncio.wait_for(here.recv(), 5)
        await serving
        assert sum(there.stats.refused.values()) == 1

    asyncio.run(main())


def test_answers_to_nothing_and_unknown_requests_do_no_harm() -> None:
    async def main() -> None:
        here, there = MemoryLink.pair()
        serving = asyncio.create_task(serve(there, Worker("w")))
        await here.send(Frame("result", 77, None))
        await here.send(Frame("cancel", 78))
        for body in ([], [1, 2], ["x"] * 9):
            await here.send(Frame("invoke", 1, body))
            answer = await here.recv()
            assert (answer.kind, answer.number) == ("error", 1)
        await here.close()
        await serving

    asyncio.run(main())


def test_errors_as_plain_data() -> None:
    for error in (ValueError("a"), LinkClosed("b"), KeyError("c")):
        again = restored(told(error))
        assert type(again) is type(error)
    again = restored(told(NotEnoughSenders("krum", 7, 6)))
    assert isinstance(again, RemoteError)
    assert "krum needs at least 7" in str(again)
    for name in ("SystemExit", "print", "Iterable", "WeakAttack", "__import__", "nothing"):
        assert type(restored([name, "x"])) is RemoteError
    for nonsense in (None, 3, [], ["a"], ["a", 1], ["a", "b", "c"]):
        assert type(restored(nonsense)) is RemoteError


def test_a_worker_cannot_send_in_anothers_name() -> None:
    async def main() -> None:
        seen: list[Any] = []

        async def route(to: str, message: Any) -> None:
            seen.append((to, message.sender))

        class Forging(Queued):
            async def connect(self, name: str) -> Link:
                self.here, self.there = MemoryLink.pair()
                return self.here

        worker = Forging()
        await worker.start("mallory", route)
        for number, arguments in enumerate((["bob", "news", 1], ["bob", "news", 1, "alice"], ["bob"], [3, "news", 1])):
            await worker.there.send(Frame("route", number, arguments))
            answer = await worker.there.recv()
            assert (answer.kind, answer.number) == ("error" if number else "result", number)
        assert seen == [("bob", "mallory")]
        await worker.close()

    asyncio.run(main())


class Deaf(MemoryLink):
    """To a machine that need not do what it is asked."""

    trusted = False
    peer = "lab"


def test_a_machine_that_answers_no_cancellation_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_module, "PATIENCE", 0.2)

    async def main() -> None:
        for room in (10, 1):  # it reads, and answers nothing; it does not even read
            here, there = Deaf.pair(room)
            client = Rpc(here, lambda kind, arguments: asyncio.sleep(0))
            running = asyncio.create_task(client.run())
            began = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.request("call")
            assert asyncio.get_running_loop().time() - began < 2
            with pytest.raises(WorkerDied, match=r"lab did not end within 0\.2 s what it was asked to end"):
                await client.request("call")
            await asyncio.wait_for(running, 1)
            await there.close()

    asyncio.run(main())


def test_a_machine_that_forgets_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "PATIENCE", 0.1)
    monkeypatch.setattr(rpc_module, "PATIENCE", 0.1)

    class Silent(Queued):
        trusted = False

        async def connect(self, name: str) -> Link:
            here, self.there = Deaf.pair()
            return here

    async def main() -> None:
        worker = Silent()
        await worker.start("w")
        async with asyncio.timeout(5):
            await worker.drop(1)
            await worker.drop(1)  # nor once it has lost its link by that
        await worker.close()

    asyncio.run(main())


def test_an_error_of_another_machine_names_it() -> None:
    async def main() -> None:
        here, there = Deaf.pair()
        client = Rpc(here, lambda kind, arguments: asyncio.sleep(0))
        running = asyncio.create_task(client.run())
        asked = asyncio.create_task(client.request("call"))
        await there.send(Frame("error", (await there.recv()).number, ["ValueError", "no"]))
        with pytest.raises(ValueError, match="no") as caught:
            await asked
        assert caught.value.__notes__ == ["on lab"]
        await client.close()
        await running

    asyncio.run(main())


LIES: dict[str, list[Any]] = {
    "create": [None, 5, [1], ["1", []], [1, 5], [1, [5]], [1, ["add", None]]],
    "receive": [None, [], ["x", 1], [5, 1, "a"], ["x", 1, 7]],
}


@pytest.mark.parametrize("kind", LIES)
def test_an_answer_that_is_none_is_refused_in_its_machines_name(kind: str) -> None:
    async def main() -> None:
        for lie in LIES[kind]:
            worker = Queued()
            await worker.start("w")
            assert worker._rpc is not None
            worker._rpc.link.peer = "lab"

            async def answered(*request: Any, late: Any = None, lie: Any = lie) -> Any:
                return lie

            worker._rpc.request = answered  # type: ignore[method-assign]
            with pytest.raises(ActorError, match=f"lab answered .{kind}. by what is no answer to it"):
                await (worker.create(Account, (), {}) if kind == "create" else worker.receive("x"))
            await worker.close()

    asyncio.run(main())


def test_what_another_machine_says_cannot_move_the_cursor() -> None:
    for said in (["ValueError", "no\x1b[2J\x1b[1;1Hall is well\r"], ["\x1b[31mNovel", "\x07\u202e"]):
        message = str(restored(said))
        assert not set(message) & set("\x1b\r\x07\u202e")
    assert str(restored(["ValueError", "two\nlines"])) == "two\nlines"


def test_a_worker_that_floods_a_mailbox_keeps_nobody_elses_messages_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "ROOM", 10_000)

    async def main() -> None:
        host = host_module.Host("here", mailbox_limit=3)
        large = torch.zeros(1000)  # 4000 bytes
        for _ in range(2):
            host.deliver(Message("x", large, "lab"))
        with pytest.raises(MailboxFull, match="'x' of lab is refused"):
            host.deliver(Message("x", large, "lab"))
        for k in range(3):
            host.deliver(Message("x", k, "honest"))
        with pytest.raises(MailboxFull, match="3 messages wait and the limit is 3: 'x' of honest is refused"):
            host.deliver(Message("x", 3, "honest"))
        assert [(await host.receive("x")).sender for _ in range(5)] == ["lab"] * 2 + ["honest"] * 3
        host.close()

    asyncio.run(main())
