"""How a link begins: who speaks, for what purpose, in which version, and that it is no recording.

    dialler    hello   [version, name, purpose, clock, nonce]
    listener   hello   [version, clock, the dialler's nonce, nonce]      or   refused   reason
    dialler    ready   the listener's nonce

Both sides hear a number back that they have just made, so neither half of a recorded connection can be played again.
"""

from __future__ import annotations

import math
import secrets
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass

from byzflow import __version__
from byzflow.actors.keys import Keys
from byzflow.actors.link import Frame
from byzflow.actors.socket_link import SocketLink
from byzflow.actors.wire import Limits
from byzflow.errors import ActorError, legible

WIRE = 1  # version of what is said on a link
HELLO, READY, REFUSED = "hello", "ready", "refused"
NONCE = 16  # bytes
SKEW = 60.0  # seconds that two clocks may differ before it is worth a word


@dataclass(frozen=True)
class Hello:
    """What a dialler says of itself. All of it are claims: who it is, the link's certificate says."""

    version: str
    said: str
    purpose: str
    clock: float
    nonce: bytes


async def greet(link: SocketLink, said: str, purpose: str) -> None:
    """Say hello as the dialler, and check the answer. Raises ActorError if refused, LinkClosed."""
    nonce, began = secrets.token_bytes(NONCE), time.time()
    await link.send(Frame(HELLO, WIRE, [__version__, said[:64], purpose, began, nonce]))
    match await link.recv():
        case Frame(kind="hello", number=1, body=[str(), float(clock), bytes(echo), bytes(theirs)]):
            if not secrets.compare_digest(echo, nonce):
                raise ActorError("answered another connection's hello: a recording, or something between the two")
            link.skew = _skew(clock, (began + time.time()) / 2)
            await link.send(Frame(READY, WIRE, theirs))
        case Frame(kind="refused", body=str(reason)):
            raise ActorError(f"refused: {legible(reason, 500)}")
        case _:
            raise ActorError("refused: it speaks another wire; install the same byzflow on both sides")


async def welcome(link: SocketLink, purposes: Sequence[str], limits: Limits) -> Hello:
    """Hear the dialler's hello as the listener, answer it, and see that it is no recording. Raises ActorError.

    From then on the link takes frames up to `limits`.
    """
    match await link.recv():
        case Frame(kind="hello", number=1, body=[str(version), str(said), str(asked), float(clock), bytes(nonce)]):
            hello = Hello(legible(version, 20), said[:64], asked[:100], clock, nonce[:64])
        case Frame(kind="hello", number=int(number)):
            raise ActorError(f"wire {number} asks, wire {WIRE} answers, or the hello does not read; {SAME}")
        case _:
            raise ActorError("the first frame must be a hello")
    if not _fits(version):
        raise ActorError(f"versions differ: byzflow {hello.version} asks, byzflow {__version__} answers; {SAME}")
    if asked not in purposes:
        raise ActorError(
            f"this side is here for {purposes[0]!r}, not for {hello.purpose!r}: another port, or another run"
        )
    link.said, link.skew = hello.said, _skew(clock, time.time())
    own, link.limits = secrets.token_bytes(NONCE), limits  # its first frames may come right behind its answer
    await link.send(Frame(HELLO, WIRE, [__version__, time.time(), hello.nonce, own]))
    match await link.recv():
        case Frame(kind="ready", number=1, body=bytes(echo)) if secrets.compare_digest(echo, own):
            return hello
    raise ActorError("the second frame must give this connection's number back: a recording is not served")


def not_proven(url: str, error: ssl.SSLError) -> str:
    """What it means to the dialler that the encryption did not come about, and what to do."""
    code = getattr(error, "verify_code", 0)
    if code == EXPIRED:
        return f"the certificate of {url} has expired: make a new one there (byzflow keys new), and trust it here"
    if code == NOT_YET:
        return f"the certificate of {url} is not valid yet: is one of the two clocks wrong?"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"{url} does not prove to be whom you trust ({error.verify_message}): "
            "is its own.crt, as it is now, in trusted/ here? (byzflow keys trust)"
        )
    return f"{url} does not speak TLS 1.3 ({error.reason}): was it started without --keys?"


def ended(url: str, error: Exception, keys: Keys | None) -> str:
    """What it means to the dialler that the connection ended before its hello was answered, and what to do."""
    if keys is not None and keys.expires() < time.time():  # asyncio's listeners end the connection without a word
        return f"{url} ended the connection: this side's certificate has expired; {RENEW}"
    if isinstance(error, TimeoutError):
        return f"{url} takes connections, but does not answer a hello: does byzflow run there, and is it busy?"
    return (
        f"{url} ended the connection: it may not trust this side's key (byzflow keys trust NAME own.crt, there), "
        f"or one side runs without keys ({error})"
    )


RENEW = "byzflow keys new, in a new folder, and have its own.crt trusted there"
EXPIRED, NOT_YET = 10, 9  # OpenSSL's numbers
SAME = "install the same byzflow on both sides"


def _skew(theirs: float, own: float) -> float:
    return theirs - own if math.isfinite(theirs) else math.inf


def _fits(version: str) -> bool:
    """Of versions 0.x all of one x fit, later all of one major version."""
    own, other = __version__.split("."), version.split(".")
    return own[:2] == other[:2] if own[0] == "0" else own[0] == other[0]
