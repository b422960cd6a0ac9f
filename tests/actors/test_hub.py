"""Hubs: what a hello must say, what a peer may cost, who stays when it is full, and dialling that does not give up."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from byzflow.actors import socket_link
from byzflow.actors.hello import Hello
from byzflow.actors.hub import Hub, pauses
from byzflow.actors.keys import Keys
from byzflow.actors.link import Frame
from byzflow.actors.peer import Accounts, Budget
from byzflow.actors.socket_link import SocketLink
from byzflow.actors.wire import Limits
from byzflow.errors import ActorError, LinkClosed, WireError
from tests.actors.test_tcp import whole

MB = 1 << 20
HERE = "tcp://127.0.0.1:0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A server and two others that trust it and are trusted by it."""
    root = tmp_path_factory.mktemp("keys")
    keys = {name: Keys.new(name, root / name) for name in ("server", "one", "two")}
    for name in ("one", "two"):
        keys["server"].trust(name, keys[name].certificate)
        keys[name].trust("server", keys["server"].certificate)
    return {name: each.folder for name, each in keys.items()}


class Seen:
    """Links that a hub was to serve; each is held until the hub ends it."""

    def __init__(self) -> None:
        self.links: dict[str, SocketLink] = {}
        self.came = asyncio.Event()

    async def __call__(self, link: SocketLink, hello: Hello) -> None:
        self.links[hello.said] = link
        self.came.set()
        while link.open:
            await asyncio.sleep(0.01)


async def until(true: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def test_both_sides_know_each_other_and_their_clocks(folders: dict[str, Path]) -> None:
    async def main() -> None:
        seen = Seen()
        async with Hub(HERE, seen, keys=folders["server"]) as hub, Hub(keys=folders["one"]) as other:
            link = await other.dial(hub.url, "a name of its own choice")
            await until(lambda: seen.links)
            ((said, served),) = seen.links.items()
            assert (link.peer, served.peer, said, served.said) == ("server", "one", said, "a name of its own choice")
            assert max(abs(link.skew), abs(served.skew)) < 1
            assert list(hub.links) == ["one"]
            assert list(other.links) == ["server"]
            await link.close()
            await until(lambda: not hub.links)
            assert not hub.refused

    asyncio.run(main())


def test_another_purpose_is_refused_by_name() -> None:
    async def main() -> None:
        async with Hub(HERE, Seen(), purpose="federation:one") as hub:
            with pytest.raises(ActorError, match="is here for 'federation:one', not for 'actors'"):
                await Hub().dial(hub.url)
            assert sum(next(iter(hub.refused.values())).values()) == 1

    asyncio.run(main())


def test_a_clock_that_is_wrong_is_seen_and_one_that_is_no_number_does_not_matter() -> None:
    async def main() -> None:
        seen = Seen()
        async with Hub(HERE, seen) as hub:
            for clock in (time.time() + 3600.0, float("nan"), 1e308):
                _, writer = await asyncio.open_connection(hub.host, hub.port)
                writer.write(whole(Frame("hello", 1, ["0.1.0", f"{clock}", "actors", clock, b"n"])))
                await until(lambda: hub.links)
                link = hub.links[next(iter(hub.links))][0]
                await until(lambda link=link: link.said)
                assert link.skew > 3590
                writer.close()
                await until(lambda: not hub.links)

    asyncio.run(main())


def test_a_recorded_connection_is_not_served_again() -> None:
    async def main() -> None:
        served = []
        recorded = bytearray()

        async def serve(link: SocketLink, hello: Hello) -> None:
            served.append(await link.recv())

        async with Hub(HERE, serve) as hub:

            async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                there, onwards = await asyncio.open_connection(hub.host, hub.port)

                async def back() -> None:
                    while data := await there.read(1000):
                        writer.write(data)

                backwards = asyncio.create_task(back())
                while data := await reader.read(1000):
                    recorded.extend(data)
                    onwards.write(data)
                onwards.close()
                writer.close()
                with suppress(ConnectionError):
                    await backwards

            proxy = await asyncio.start_server(between, "127.0.0.1", 0)
            link = await Hub().dial(f"tcp://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", "honest")
            await link.send(Frame("pay", 1, "again"))
            await until(lambda: served)
            await link.close()
            proxy.close()
            reader, writer = await asyncio.open_connection(hub.host, hub.port)
            writer.write(bytes(recorded))
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()
            await until(lambda: hub.refused)
            assert len(served) == 1
            assert "a recording is not served" in str(hub.refused)

    asyncio.run(main())


def test_a_peer_has_one_budget_for_all_its_links_and_others_their_own(folders: dict[str, Path]) -> None:
    """Two links of one peer send what only one may have here; the second is read on once the first is taken."""

    async def main() -> None:
        seen = Seen()
        limits = Limits(body=4 * MB)
        async with (
            Hub(HERE, seen, keys=folders["server"], limits=limits, budget=4 * MB) as hub,
            Hub(keys=folders["one"]) as one,
            Hub(keys=folders["two"]) as two,
        ):
            links = {name: await one.dial(hub.url, name) for name in ("a", "b")}
            links["c"] = await two.dial(hub.url, "c")
            await until(lambda: len(seen.links) == 3)
            array = np.ones(3 * MB, np.uint8)
            sends = [asyncio.create_task(links[name].send(Frame("x", 1, array))) for name in "abc"]
            await until(lambda: seen.links["c"].stats.frames_in == 3)
            await until(lambda: seen.links["a"].stats.frames_in + seen.links["b"].stats.frames_in == 5)
            await asyncio.sleep(0.2)
            first, second = sorted((seen.links["a"], seen.links["b"]), key=lambda link: -link.stats.frames_in)
            assert (first.stats.frames_in, second.stats.frames_in) == (3, 2)
            assert second.stats.bytes_in < 2 * MB  # not read on
            for link in (first, second, seen.links["c"]):
                async with asyncio.timeout(5):
                    assert np.array_equal((await link.recv()).body, array)
            await asyncio.gather(*sends)
            budgets = [peer.budget for peer in hub._peers.values()]
            assert [budget.used for budget in budgets] == [0, 0]

    asyncio.run(main())


def test_a_frame_larger_than_the_budget_is_refused_and_links_that_end_give_back(folders: dict[str, Path]) -> None:
    async def main() -> None:
        seen = Seen()
        async with (
            Hub(HERE, seen, keys=folders["server"], budget=2 * MB) as hub,
            Hub(keys=folders["one"]) as one,
        ):
            link = await one.dial(hub.url, "a")
            with suppress(LinkClosed):
                await link.send(Frame("x", 1, np.ones(3 * MB, np.uint8)))
            await until(lambda: hub.refused)
            assert "a peer may have 2097152 on their way" in str(hub.refused["one"])
            half = await one.dial(hub.url, "half")
            head = whole(Frame("x", 1, np.ones(2 * MB, np.uint8)), sequence=half._sent)[:MB]
            assert half._transport is not None
            half._transport.write(head)
            await until(lambda: hub._peers["one"].budget.used)
            next_one = await one.dial(hub.url, "next")
            sending = asyncio.create_task(next_one.send(Frame("x", 1, np.ones(MB, np.uint8))))
            await asyncio.sleep(0.1)
            assert seen.links["next"].stats.frames_in == 2
            await half.close()  # in the middle of its frame
            await until(lambda: seen.links["next"].stats.frames_in == 3)
            await sending

    asyncio.run(main())


def test_budget_serves_in_order_and_forgets_who_left() -> None:
    budget, served = Budget(10), []
    callbacks = [lambda k=k: served.append(k) for k in range(4)]
    assert budget.take(8, callbacks[0])
    assert not budget.take(5, callbacks[1])
    assert not budget.take(1, callbacks[2])  # there would be room, but it is not its turn
    assert budget.take(0, callbacks[3])
    budget.leave(callbacks[1])
    assert served == [2]
    budget.give(8)
    assert budget.used == 1
    with pytest.raises(WireError, match="11 bytes of arrays in one frame; a peer may have 10"):
        budget.take(11, callbacks[3])


def test_a_full_hub_ends_the_worst_peer_for_a_better_one(folders: dict[str, Path]) -> None:
    async def main() -> None:
        seen = Seen()
        async with (
            Hub(HERE, seen, keys=folders["server"], connections=2) as hub,
            Hub(keys=folders["one"]) as bad,
            Hub(keys=folders["two"]) as good,
        ):
            link = await good.dial(hub.url, "good")
            for k in range(5):
                await link.send(Frame("x", k))
            await until(lambda: hub.score("two") >= 7)
            await link.close()
            for _ in range(3):
                link = await bad.dial(hub.url, "bad")
                assert link._transport is not None
                link._transport.write(b"GET / HTTP/1.1\r\n\r\n")
                await until(lambda link=link: not link.open)
            assert hub.score("one") < -20
            idle = [await bad.dial(hub.url, f"idle {k}") for k in range(2)]
            again = await good.dial(hub.url, "good again")
            await until(lambda: sum(link.open for link in idle) == 1)
            assert hub.refused["one"]["ended in favour of a peer with a higher score"] == 1
            with pytest.raises(ActorError, match="ended the connection"):
                await bad.dial(hub.url, "one too many")
            assert again.open
            assert hub.serving == 2

    asyncio.run(main())


def test_scores_are_bounded(folders: dict[str, Path]) -> None:
    async def main() -> None:
        async with Hub(HERE, Seen(), keys=folders["server"]) as hub, Hub(keys=folders["one"]) as one:
            link = await one.dial(hub.url, "flatterer")
            hub._peers["one"].links[0].stats.frames_in = 10**6
            assert hub.score("one") == 100
            assert hub.score("nobody") == 0
            assert link._transport is not None
            link._transport.write(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: not hub.links)
            assert hub.score("one") == 90

    asyncio.run(main())


def test_a_link_that_ends_within_a_frame_costs_what_a_dead_link_does(folders: dict[str, Path]) -> None:
    async def main() -> None:
        seen = Seen()
        async with Hub(HERE, seen, keys=folders["server"]) as hub, Hub(keys=folders["one"]) as other:
            for k in range(2):
                link = await other.dial(hub.url, f"{k}")
                await until(lambda k=k: f"{k}" in seen.links)
                before = hub.score("one")
                assert link._transport is not None
                link._transport.write(whole(Frame("x", 1, list(range(100))))[:50])
                link._transport.close()
                await until(lambda: not hub.links)
                assert hub.score("one") == before - 5
            await until(lambda: hub.refused == {"one": {"the connection ended within a frame": 2}})

    asyncio.run(main())


def test_a_side_that_was_held_up_itself_does_not_hold_it_against_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_link, "BEAT", 0.1)
    monkeypatch.setattr(socket_link, "DEAD", 0.4)

    async def main() -> None:
        async with Hub(HERE, Seen()) as hub, Hub() as other:
            link = await other.dial(hub.url)
            for _ in range(3):
                time.sleep(0.8)  # the event loop of both
                await asyncio.sleep(0.3)
            assert link.open
            assert hub.links
            assert link._watch is not None
            link._watch.cancel()  # no more signs of life: that is noticed as ever
            await until(lambda: not hub.links)
            await until(lambda: hub.refused)
            assert list(hub.refused.values()) == [{"silent": 1}]

    asyncio.run(main())


def test_any_start_order_and_a_restart(folders: dict[str, Path]) -> None:
    async def main() -> None:
        troubles: list[tuple[str, str, float]] = []
        got: list[Any] = []
        async with Hub(HERE, Seen()) as placeholder:
            port = placeholder.port

        async def work(link: SocketLink) -> bool:
            frame = await link.recv()
            got.append(frame.body)
            return frame.body == "enough"

        def say(words: str) -> Any:
            async def serve(link: SocketLink, hello: Hello) -> None:
                assert hello.said == "worker"
                await link.send(Frame("say", 1, words))
                await asyncio.sleep(0.2)

            return serve

        async with Hub(random=random.Random(0)) as hub:
            keeping = asyncio.create_task(
                hub.keep(
                    f"tcp://127.0.0.1:{port}",
                    work,
                    "worker",
                    on_trouble=lambda *each: troubles.append(each),
                    longest=0.3,
                )
            )
            await until(lambda: len(troubles) >= 3)
            assert not keeping.done()
            async with Hub(f"tcp://127.0.0.1:{port}", say("more")):
                await until(lambda: got)
            async with Hub(f"tcp://127.0.0.1:{port}", say("enough")):
                async with asyncio.timeout(5):
                    await keeping
            assert got[-1] == "enough"
            assert all(where == f"127.0.0.1:{port}" and 0 < pause <= 0.3 for where, _, pause in troubles)
            assert "cannot be reached" in troubles[0][1]
            assert "is the other side" not in troubles[0][1]  # of a pool, so the server's program is named
            assert not hub.links

    asyncio.run(main())


def test_pauses_double_up_to_their_bound_and_follow_the_seed() -> None:
    waits = list(itertools.islice(pauses(random.Random(1), 5.0), 12))
    assert waits == list(itertools.islice(pauses(random.Random(1), 5.0), 12))
    assert all(low / 2 <= wait <= low for wait, low in zip(waits, [0.4, 0.8, 1.6, 3.2, *[5.0] * 8], strict=True))


def test_a_hub_that_only_dials_has_nothing_to_serve() -> None:
    with pytest.raises(ActorError, match="a hub that listens needs `serve`"):
        Hub(HERE)


def test_refusals_of_who_is_known_are_counted_as_theirs_however_many_come_later() -> None:
    accounts = Accounts(budget=1, forget=True)
    accounts.count("a", "first")
    for k in range(2000):
        accounts.count(f"stranger {k}", "too many connections")
        accounts.count("a", f"reason {k}")
    for reason in ("first", "new"):
        accounts.count("a", reason)
    assert len(accounts.refused) == 1001
    assert len(accounts.refused["a"]) == 21
    assert accounts.refused["a"]["first"] == 2
    assert sum(accounts.refused["a"].values()) == 2003
