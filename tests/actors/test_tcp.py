"""Workers over TCP: the contract, who is let in, and what hostile bytes do."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from byzflow.actors import ActorPool, ActorPoolConfig, SubTask, resolve, spawn
from byzflow.actors.conformance import CHECKS, Account, _checked, echo
from byzflow.actors.keys import Keys
from byzflow.actors.link import Frame
from byzflow.actors.tcp import ActorServer, TcpBackend
from byzflow.actors.wire import PREFIX, Header, Limits
from byzflow.errors import ActorError, KeyFault, WireError, WorkerDied
from tests.campaigns import fuzz
from tests.campaigns.frames import parsed, raw, whole
from tests.campaigns.fuzz import ALLOW


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A server, a client that it trusts, and a stranger that knows the server but is not known to it."""
    root = tmp_path_factory.mktemp("keys")
    keys = {name: Keys.new(name, root / name) for name in ("server", "client", "stranger")}
    keys["server"].trust("client", keys["client"].certificate)
    for name in ("client", "stranger"):
        keys[name].trust("server", keys["server"].certificate)
    return {name: each.folder for name, each in keys.items()}


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[ActorServer]:
    async with ActorServer("tcp://127.0.0.1:0", allow=ALLOW, **options) as server:
        yield server


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Any, encrypted: bool, folders: dict[str, Path]) -> None:
    async def main() -> None:
        async with served(keys=folders["server"] if encrypted else None) as server:
            options = {"keys": folders["client"]} if encrypted else {}
            await _checked(check, lambda: resolve(server.url, **options), {})
            assert not server.refused

    asyncio.run(main())


def test_who_is_not_trusted_is_not_let_in(folders: dict[str, Path], tmp_path: Path) -> None:
    async def main() -> None:
        async with served(keys=folders["server"]) as server:
            for options, words in (
                ({"keys": folders["stranger"]}, "may not trust this side's key"),
                ({}, "may not trust this side's key|cannot be reached"),
            ):
                worker = TcpBackend(server.host, server.port, **options)
                with pytest.raises(ActorError, match=words):
                    await worker.start("w")
            unknowing = Keys.new("client2", tmp_path / "client2")  # does not trust the server
            unknowing.trust("other", folders["stranger"] / "own.crt")
            with pytest.raises(ActorError, match="does not prove to be whom you trust"):
                await TcpBackend(server.host, server.port, keys=unknowing.folder).start("w")
            assert server.workers == 0
            worker = TcpBackend(server.host, server.port, keys=folders["client"])  # others go on
            await worker.start("w")
            assert await worker.call(echo, (1,)) == 1
            await worker.close()

    asyncio.run(main())


def test_what_is_not_named_does_not_run() -> None:
    async def main() -> None:
        async with served() as server:
            worker = TcpBackend(server.host, server.port)
            await worker.start("w")
            for fn in ("os:system", "builtins:eval", os.system, "byzflow.actors.conformance:os"):
                with pytest.raises(ActorError, match="may not be run here"):
                    await worker.call(fn, ("true",))
            with pytest.raises(ActorError, match=r"byzflow\.remote"):
                await worker.call(lambda: 1)
            with pytest.raises(ActorError, match="cannot cross"):
                await worker.call(echo, (object(),))
            assert await worker.call("byzflow.actors.conformance:echo", (2,)) == 2
            await worker.close()

    asyncio.run(main())


def test_other_hosts_need_keys() -> None:
    with pytest.raises(ActorError, match=r"10\.0\.0\.1 is not this host: give keys=DIR"):
        TcpBackend("10.0.0.1", 7000)
    with pytest.warns(UserWarning, match="neither encrypted nor authenticated"):
        TcpBackend("10.0.0.1", 7000, plain=True)
    with pytest.raises(ActorError, match="is no address"):
        resolve("tcp://nowhere")


def test_a_restarted_server_is_found_again(folders: dict[str, Path]) -> None:
    async def main() -> None:
        async with served(keys=folders["server"]) as first:
            port = first.port
            config = ActorPoolConfig(first.url, 2, options={"keys": folders["client"]})
            pool = ActorPool([config], max_restarts=5)
            assert await pool.run_many([SubTask(echo, (k,)) for k in range(10)]) == list(range(10))
        async with ActorServer(f"tcp://127.0.0.1:{port}", keys=folders["server"], allow=ALLOW):
            tasks = [SubTask(echo, (k,), max_retries=5) for k in range(10)]
            assert await pool.run_many(tasks) == list(range(10))
            await pool.shutdown()
        with pytest.raises(ActorError, match=r"cannot be reached: .*is `byzflow actor-server` running there"):
            await TcpBackend("127.0.0.1", port).start("w")

    asyncio.run(main())


def test_objects_go_with_their_connection() -> None:
    async def main() -> None:
        async with served() as server:
            async with await spawn(Account, 5.0, backend=server.url) as account:
                assert await account.add(1.0) == 6.0
                assert server.workers == 1
            for _ in range(100):
                if not server.workers:
                    break
                await asyncio.sleep(0.02)
            assert server.workers == 0
            with pytest.raises(WorkerDied):
                await account.add(1.0)

    asyncio.run(main())


def test_large_arrays_cross_in_both_directions() -> None:
    async def main() -> None:
        async with served() as server:
            worker = TcpBackend(server.host, server.port)
            await worker.start("w")
            x = torch.randn(3_000_001)
            results = await asyncio.gather(*(worker.call(echo, (x + k,)) for k in range(4)))
            assert all(torch.equal(got, x + k) for k, got in enumerate(results))
            await worker.close()

    asyncio.run(main())


# --------------------------------------------------------------------------------------- the bytes themselves

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(-9, 9), inner, max_size=4)
    | st.tuples(inner, inner),
    max_leaves=20,
)  # fmt: skip


@given(values, st.text(max_size=20), st.integers(0, 2**63))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_values_come_back(value: Any, kind: str, number: int) -> None:
    assert parsed(whole(Frame(kind, number, value))) == Frame(kind, number, value)


def test_what_cannot_cross_is_refused_at_home() -> None:
    for value in (object(), {1, 2}, 1j, 2**70, torch.ones(2).to_sparse(), np.array(["a"]), np.array([None]), echo):
        with pytest.raises(WireError, match="cannot cross"):
            whole(Frame("x", 1, value))
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(WireError):
        whole(Frame("x", 1, nested))
    with pytest.raises(WireError, match=r"1000\d\d bytes of header .*; the limit is 65536"):
        whole(Frame("x", 1, "a" * 100_000))
    with pytest.raises(WireError, match="arrays; the limit is 4096"):
        whole(Frame("x", 1, [np.zeros(1, np.int8)] * 5000), limits=Limits(header=1 << 20))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "another program": lambda: b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "an endless header": lambda: PREFIX.pack(b"bzf1", 2**32 - 1, 0),
    "an endless body": lambda: PREFIX.pack(b"bzf1", 10, 2**63),
    "no header": lambda: PREFIX.pack(b"bzf1", 0, 0),
    "not msgpack": lambda: raw(b"\xc1\xff\xff"),
    "not text": lambda: raw(b"\x95\x00\xa1\xff\x00\xc0\x90"),
    "too many fields": lambda: raw([0, "x", 1, None, [], 7]),
    "too few fields": lambda: raw([0, "x"]),
    "a deep header": lambda: raw(b"\x91" * 60_000 + b"\xc0"),
    "a deep value": lambda: raw(b"\x95\x00\xa1x\x01" + b"\x91" * 50_000 + b"\xc0\x90"),
    "a negative shape": lambda: raw([0, "x", 1, None, [["float32", [-1], True, False]]], 0),
    "a shape that overflows": lambda: raw([0, "x", 1, None, [["float32", [2**62, 2**62, 0], True, False]]], 0),
    "shapes that do not fit": lambda: raw([0, "x", 1, None, [["float32", [100], True, False]]], 64),
    "a strange dtype": lambda: raw([0, "x", 1, None, [["object", [1], False, False]]], 64),
    "many dimensions": lambda: raw([0, "x", 1, None, [["uint8", [1] * 99, True, False]]], 64),
    "a replay": lambda: whole(Frame("hello", 1, ["0.1.0", "w", "actors", 0.0, b"n"])) * 2,
    "a frame from later": lambda: whole(Frame("hello", 1, ["0.1.0", "w", "actors", 0.0, b"n"]), sequence=5),
    "arrays before a hello": lambda: whole(Frame("hello", 1, ["0.1.0", torch.zeros(9)])),
    "a gigabyte before a hello": lambda: PREFIX.pack(b"bzf1", 10, 1 << 30),
    "an array that is not there": lambda: raw([0, "x", 1, msgspec.msgpack.Ext(1, b"\x07"), []]),
    "an unknown extension": lambda: raw([0, "x", 1, msgspec.msgpack.Ext(99, b"\x07"), []]),
    "a mapping of lists": lambda: raw([0, "x", 1, msgspec.msgpack.Ext(3, b"\x91\x92\x90\x90"), []]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_end_their_link_and_are_counted(name: str) -> None:
    async def main() -> None:
        async with served() as server:
            honest = TcpBackend(server.host, server.port)
            await honest.start("honest")
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(HOSTILE[name]())
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 5)  # to the end of the connection
            writer.close()
            assert await honest.call(echo, ("still there",)) == "still there"
            await honest.close()
            assert sum(sum(reasons.values()) for reasons in server.refused.values()) == 1, server.refused

    asyncio.run(main())


def ext(number: int) -> Any:
    return msgspec.msgpack.Ext(1, bytes([number]))


SMALL, LARGE = ["uint8", [1], True, False], ["uint8", [1 << 20], True, False]


@pytest.mark.parametrize("value", [None, ext(0), [ext(0), ext(0)], {"k": ext(0)}, [{"k": [ext(0)]}]])
def test_a_small_array_cannot_keep_the_memory_of_large_ones(value: Any) -> None:
    """Who counts the bytes of what waits counts those of the arrays that the value holds."""
    with pytest.raises(WireError, match="does not hold all of the arrays"):
        parsed(raw([0, "x", 1, value, [SMALL, LARGE]], 64 + (1 << 20)))


def test_one_key_twice_cannot_hide_an_array() -> None:
    twice = b"\x82" + (msgspec.msgpack.encode("k") + msgspec.msgpack.encode(ext(0))) * 2
    for value in (msgspec.Raw(twice), msgspec.msgpack.Ext(3, msgspec.msgpack.encode([["k", ext(0)], ["k", ext(1)]]))):
        with pytest.raises(WireError, match="does not hold all of the arrays"):
            parsed(raw([0, "x", 1, value, [SMALL, SMALL]], 128))


def test_an_empty_array_has_no_endless_rows() -> None:
    for shape, what in ([1 << 17, 0], "rows"), ([300, 300, 0], "rows"), ([0, 1 << 31], "columns"):
        with pytest.raises(WireError, match=f"{what} of an empty array; the limit is"):
            parsed(raw([0, "x", 1, ext(0), [["uint8", shape, True, False]]]))
    with pytest.raises(WireError, match="columns of an empty array; the limit is 1000"):
        whole(Frame("x", 1, torch.empty(0, 2000)), limits=Limits(body=1000))
    for sent in (torch.empty(0, 1000, 1000), torch.empty(()), np.zeros((3, 0))):
        assert parsed(whole(Frame("x", 1, sent))).body.shape == sent.shape


def test_a_worker_that_asks_for_more_than_to_send_is_refused() -> None:
    async def main() -> None:
        async with served() as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(whole(Frame("invoke", 1, [1, "__class__", [], {}])))
            answer = await asyncio.wait_for(reader.read(), 5)
            assert b"the first frame must be a hello" in answer
            writer.close()

    asyncio.run(main())


def test_fuzzed_frames_are_read_or_refused() -> None:
    outcome = fuzz.at_the_parser(20_000, random.Random(0))
    assert not outcome.faults
    assert outcome.refused.total() > 10_000
    assert outcome.read.total() > 1_000
    assert outcome.median < fuzz.MEDIAN


def test_a_fuzzed_server_refuses_each_bad_connection_once_and_serves_the_honest() -> None:
    outcome = asyncio.run(fuzz.at_a_server(400, random.Random(0)))
    assert not outcome.faults
    assert outcome.refused.total() > 200
    assert outcome.honest > 10


def test_wrong_keys_and_none_are_refused_and_counted() -> None:
    outcome = asyncio.run(fuzz.without_a_right_key(20))
    assert not outcome.faults
    assert outcome.honest == 20


def test_keys_are_private_and_named(folders: dict[str, Path], tmp_path: Path) -> None:
    keys = Keys.of(folders["client"])
    assert keys.key.stat().st_mode & 0o777 == 0o600
    assert list(keys.names().values()) == ["server"]
    with pytest.raises(KeyFault, match="is there already"):
        Keys.new("again", folders["client"])
    for name in ("", "../x", "a b", "x" * 65):
        with pytest.raises(KeyFault, match="is no name"):
            Keys.new(name, tmp_path / "k")
    with pytest.raises(KeyFault, match=r"holds no own\.key"):
        Keys.of(tmp_path)
    bad = tmp_path / "bad.crt"
    bad.write_text("nothing")
    with pytest.raises(KeyFault, match="is no certificate"):
        keys.trust("bad", bad)
    with pytest.raises(KeyFault, match="is trusted already, as server"):
        keys.trust("other", folders["server"] / "own.crt")
    loose = Keys.new("loose", tmp_path / "loose")
    loose.key.chmod(0o644)
    with pytest.raises(KeyFault, match="can be read by others"):
        Keys.of(loose.folder)
    assert keys.context(server=True).minimum_version == ssl.TLSVersion.TLSv1_3


def test_the_header_is_as_documented() -> None:
    data = whole(Frame("call", 7, [torch.zeros(3)]))
    magic, size, body = struct.unpack(">4sIQ", data[:16])
    assert (magic, body, len(data)) == (b"bzf1", 64, 16 + size + 64)
    header = msgspec.msgpack.decode(data[16 : 16 + size], type=Header)
    assert (header.sequence, header.kind, header.number) == (0, "call", 7)
    assert header.arrays[0].shape == [3]
