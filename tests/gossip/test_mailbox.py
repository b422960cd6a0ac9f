"""A node's mailbox: one message per sender, type and round; bounded, checked, and never in the way of others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from byzflow.errors import MailboxFull, MessageTimeout, QuorumLost, Stopped
from byzflow.gossip.envelope import Envelope
from byzflow.gossip.mailbox import LOOSE, Mailbox


def half(sender: Any, value: Any = 1, round: int | None = 0, type: str = "half") -> Envelope:
    return Envelope(type, sender, value, round)


def test_it_waits_for_all_that_live_and_gives_them_in_the_order_asked_for() -> None:
    async def main() -> None:
        box = Mailbox()
        waiting = asyncio.create_task(box.collect("half", 0, ["a", "b", "c"], quorum=1))
        box.put(half("c", 3))
        await asyncio.sleep(0)
        box.put(half("a", 1))
        await asyncio.sleep(0)
        assert not waiting.done()
        box.down("b")
        heard = await waiting
        assert list(heard.values.items()) == [("a", 1), ("c", 3)]
        assert heard.missing == ("b",)

    asyncio.run(main())


def test_other_types_and_rounds_stay_in_their_place() -> None:
    async def main() -> None:
        box = Mailbox()
        for each in (half("a", "later", 1), half("a", "other", 0, "step"), half("a", "now")):
            assert box.put(each)
        assert (await box.collect("half", 0, ["a"], 1)).values == {"a": "now"}
        assert (await box.collect("step", 0, ["a"], 1)).values == {"a": "other"}
        box.begin(1)
        assert (await box.collect("half", 1, ["a"], 1)).values == {"a": "later"}

    asyncio.run(main())


def test_the_deadline_ends_the_wait_only_with_the_quorum() -> None:
    async def main() -> None:
        box = Mailbox()
        box.put(half("a"))
        heard = await box.collect("half", 0, ["a", "b"], quorum=1, deadline=0.01)
        assert heard.missing == ("b",)
        box.put(half("a"))
        with pytest.raises(QuorumLost, match=r"1 of 2 sent 'half' for round 0 .* 2 are needed; missing: b"):
            await box.collect("half", 0, ["a", "b"], quorum=2, deadline=0.01, patience=0.05)

    asyncio.run(main())


def test_one_who_is_silent_ends_no_run_that_has_its_quorum() -> None:
    async def main() -> None:
        box = Mailbox()
        box.put(half("a"))
        heard = await box.collect("half", 0, ["a", "b"], quorum=1, deadline=None, patience=0.01)
        assert (heard.missing, heard.silent) == (("b",), ("b",))

    asyncio.run(main())


def test_who_has_nothing_to_say_is_not_waited_for() -> None:
    async def main() -> None:
        box = Mailbox()
        box.put(half("a", None))
        box.put(half("b"))
        heard = await box.collect("half", 0, ["a", "b"], quorum=2)
        assert heard.values == {"b": 1}
        assert heard.missing == ("a",)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (half("stranger"), "not a neighbour"),
        (half("a", round=2), "late: its round is over"),
        (half("a", round=6), "too far ahead"),
        (half("b", round=3), "sent twice"),
    ],
)
def test_refusals_are_counted_against_their_sender(envelope: Envelope, reason: str) -> None:
    async def main() -> None:
        box = Mailbox(lambda envelope: envelope.sender != "stranger", ahead=2)
        box.begin(3)
        assert box.put(half("b", round=3))
        assert not box.put(envelope)
        assert box.refused == {envelope.sender: {reason: 1}}

    asyncio.run(main())


def test_a_flood_costs_its_author_alone_and_bounded_memory() -> None:
    async def main() -> None:
        box = Mailbox()
        for number in range(10_000):
            box.put(half("flood", number, None, f"t{number % 7}"))
            box.put(half("flood", number, number % 50, f"t{number}"))
        assert box.put(half("honest", "loose", None, "news"))
        assert box.put(half("honest"))
        kept = len(box._loose) + sum(map(len, box._rounds.values()))
        assert kept <= LOOSE + 3 * 32 + 2
        assert sum(box.refused["flood"].values()) >= 19_000
        assert (await box.take("news")).value == "loose"
        assert (await box.collect("half", 0, ["honest"], 1)).values == {"honest": 1}

    asyncio.run(main())


def test_large_messages_of_one_sender_are_bounded_by_their_bytes() -> None:
    async def main() -> None:
        box = Mailbox(most=10_000)
        large = torch.zeros(1000)  # 4000 bytes, and a little for the rest
        assert [box.put(half("a", large, None)) for _ in range(5)] == [True, True, True, False, False]
        assert box.put(half("b", [large, {"x": large}], None))
        assert box.refused == {"a": {"too many messages": 2}}
        with pytest.raises(MailboxFull, match=r"3 messages of a wait to be taken, and none was within 0\.01 s"):
            await box.room("a", 0.01)
        waiting = asyncio.create_task(box.room("a", 5))
        assert (await box.take()).sender == "a"
        await waiting
        assert box.put(half("a", large, None))

    asyncio.run(main())


def test_loose_messages_come_in_order_and_by_type_and_time_out() -> None:
    async def main() -> None:
        box = Mailbox()
        for value in ("one", "two"):
            box.put(half("a", value, None, "news"))
        box.put(half("a", "other", None, "metrics"))
        assert (await box.take("metrics")).value == "other"
        assert [(await box.take()).value for _ in range(2)] == ["one", "two"]
        with pytest.raises(MessageTimeout, match=r"'news' came within 0\.01 s"):
            await box.take("news", timeout=0.01)

    asyncio.run(main())


def test_a_stop_ends_every_wait() -> None:
    async def main() -> None:
        box = Mailbox()
        waits = [asyncio.create_task(box.collect("half", 0, ["a"], 1)), asyncio.create_task(box.take())]
        await asyncio.sleep(0)
        box.stop()
        for wait in waits:
            with pytest.raises(Stopped):
                await wait

    asyncio.run(main())
