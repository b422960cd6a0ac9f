"""Other ways to send arrays, each as fast as its own interface allows: no copy that it does not make itself.

Whoever receives has a whole array that can be written to, on both sides; what a library hands over without copying is
used as it is.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.echo import CLIENT, SERVER, Array, Contestant, End, listening, server
from byzflow.actors.keys import Keys
from tests.operators import peers

CHUNK = 1 << 20  # bytes of a gRPC message: what is larger is slower
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
HOST = "127.0.0.1"


# ---- pyzmq: messages that are neither copied when sent nor when received


@asynccontextmanager
async def zmq_pair(name: str, curve: bool, folder: Path) -> AsyncIterator[End]:
    """A PAIR socket."""
    import zmq

    async with server(name, folder) as (address, pid):
        url, _, public = address.partition(" ")
        with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
            pair.linger = 0
            if curve:
                pair.curve_publickey, pair.curve_secretkey = zmq.curve_keypair()
                pair.curve_serverkey = public.encode()
            pair.connect(url)

            async def echo(x: Array) -> Array:
                pair.send(x.data, copy=False)
                return np.frombuffer(pair.recv(copy=False).buffer, x.dtype)

            yield End(echo, (pid,))


async def serve_zmq(curve: bool, folder: Path) -> None:
    """The other end; any client's key is let in, as checking it costs nothing later."""
    import zmq

    public, secret = zmq.curve_keypair() if curve else (b"", b"")
    with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
        if curve:
            pair.curve_server, pair.curve_secretkey = True, secret
        port = pair.bind_to_random_port(f"tcp://{HOST}")
        listening(f"tcp://{HOST}:{port} {public.decode()}")
        while True:
            array = np.frombuffer(pair.recv(copy=False).buffer, np.float32)
            pair.send(array.data, copy=False)


# ---- gRPC: one stream in both directions that stays open, in chunks


def _chunks(array: Array) -> Iterator[bytes]:
    flat = array.data.cast("B")
    yield flat.nbytes.to_bytes(8, "big")
    for at in range(0, flat.nbytes, CHUNK):
        yield bytes(flat[at : at + CHUNK])


def _joined(chunks: Iterator[bytes]) -> Array | None:
    size = next(chunks, None)
    if size is None:
        return None
    body, end = np.empty(int.from_bytes(size, "big"), np.uint8), 0
    while end < body.size:
        chunk = next(chunks)
        body[end : end + len(chunk)] = np.frombuffer(chunk, np.uint8)
        end += len(chunk)
    return body.view(np.float32)


@asynccontextmanager
async def grpc_stream(name: str, tls: bool, folder: Path) -> AsyncIterator[End]:
    """The client."""
    import grpc

    own = Keys(folder / CLIENT)
    async with server(name, folder) as (port, pid):
        where = f"{HOST}:{port}"
        if tls:
            trusted = (own.trusted / f"{SERVER}.crt").read_bytes()
            credentials = grpc.ssl_channel_credentials(trusted, own.key.read_bytes(), own.certificate.read_bytes())
            named = ("grpc.ssl_target_name_override", SERVER)
            channel = grpc.secure_channel(where, credentials, [*OPTIONS, named])
        else:
            channel = grpc.insecure_channel(where, OPTIONS)
        with channel:
            outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            answers = channel.stream_stream("/echo/Echo")(iter(outgoing.get, None))

            async def echo(x: Array) -> Array | None:
                for chunk in _chunks(x):
                    outgoing.put(chunk)
                return _joined(answers)

            yield End(echo, (pid,))
            outgoing.put(None)


async def serve_grpc(tls: bool, folder: Path) -> None:
    """The server."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def echo(incoming: Iterator[bytes], context: Any) -> Iterator[bytes]:
        while (array := _joined(incoming)) is not None:
            yield from _chunks(array)

    own = Keys(folder / SERVER)
    listener = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(echo)
    listener.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", {"Echo": handler}),))
    if tls:
        pair = [(own.key.read_bytes(), own.certificate.read_bytes())]
        trusted = (own.trusted / f"{CLIENT}.crt").read_bytes()
        port = listener.add_secure_port(f"{HOST}:0", grpc.ssl_server_credentials(pair, trusted, True))
    else:
        port = listener.add_insecure_port(f"{HOST}:0")
    listener.start()
    listening(str(port))
    await asyncio.Event().wait()


# ---- torch.multiprocessing: queues of tensors, which it moves to shared memory


@asynccontextmanager
async def torch_queues(folder: Path) -> AsyncIterator[End]:
    """The answer is the same shared memory again, so only one way costs a copy."""
    context = torch.multiprocessing.get_context("spawn")
    there, back = context.SimpleQueue(), context.SimpleQueue()
    process = context.Process(target=serve_queues, args=(there, back), daemon=True)
    process.start()

    async def echo(x: Array) -> torch.Tensor:
        there.put(torch.from_numpy(x))  # a new tensor: one that was sent before lies in shared memory already
        answer: torch.Tensor = back.get()
        return answer

    try:
        assert process.pid is not None
        yield End(echo, (process.pid,))
    finally:
        process.kill()
        process.join()


def serve_queues(there: Any, back: Any) -> None:
    """The worker."""
    while True:
        back.put(there.get())


# ---- ByzPy: its remote actor, and the pickles over asyncio's streams below it


def _byzpy(module: str) -> Any:
    return peers.peer(f"byzpy.engine.actor.{module}")


class Same:
    """The object that ByzPy's server holds."""

    def echo(self, value: Any) -> Any:
        """What was sent."""
        return value


@asynccontextmanager
async def byzpy_actor(name: str, folder: Path) -> AsyncIterator[End]:
    """Its arrays go through /dev/shm, which another host does not see."""
    async with server(name, folder) as (port, pid):
        backend = _byzpy("backends.remote").RemoteActorBackend(HOST, int(port))
        await backend.start()
        await backend.construct(Same, args=(), kwargs={})
        try:
            yield End(lambda x: backend.call("echo", x), (pid,), tensors=True)
        finally:
            await backend.close()


async def serve_byzpy(folder: Path) -> None:
    """Its server."""
    import contextlib
    import io
    import socket

    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    with contextlib.redirect_stdout(io.StringIO()):
        serving = asyncio.create_task(_byzpy("backends.remote").RemoteActorServer(HOST, port).serve())
        await asyncio.sleep(0.5)
    listening(str(port))
    await serving


@asynccontextmanager
async def byzpy_wire(name: str, folder: Path) -> AsyncIterator[End]:
    """What it sends to another host: pickles, read as a whole."""
    wire = _byzpy("_wire")
    async with server(name, folder) as (port, pid):
        reader, writer = await asyncio.open_connection(HOST, int(port))

        async def echo(x: Array) -> Any:
            await wire.send_obj(writer, x)
            return await wire.recv_obj(reader)

        yield End(echo, (pid,))
        writer.close()


async def serve_byzpy_wire(folder: Path) -> None:
    """The other end."""
    wire = _byzpy("_wire")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await wire.send_obj(writer, await wire.recv_obj(reader))

    listener = await asyncio.start_server(echo, HOST, 0)
    listening(str(listener.sockets[0].getsockname()[1]))
    await asyncio.Event().wait()


def contestants() -> list[Contestant]:
    """All of them."""
    found = []
    for kind, secret in (("pyzmq", ""), ("pyzmq, CURVE", "CURVE")):
        ends = partial(zmq_pair, kind, bool(secret)), partial(serve_zmq, bool(secret))
        found.append(Contestant(kind, secret, *ends, needs="zmq pip install pyzmq"))
    for kind, secret in (("gRPC stream", ""), ("gRPC stream, mTLS", "mutual TLS")):
        streams = partial(grpc_stream, kind, bool(secret)), partial(serve_grpc, bool(secret))
        found.append(Contestant(kind, secret, *streams, needs="grpc pip install grpcio"))
    found.append(Contestant("torch.multiprocessing", "", torch_queues))
    actor, wire = "ByzPy remote actor", "ByzPy's wire"
    if not peers.missing():
        found.append(Contestant(actor, "", partial(byzpy_actor, actor), serve_byzpy))
        found.append(Contestant(wire, "", partial(byzpy_wire, wire), serve_byzpy_wire))
    return found
