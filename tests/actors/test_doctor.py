"""`byzflow doctor --connect`: each way in which a connection does not come about has its own words and next step."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from byzflow import health
from byzflow.actors import hello, hub
from byzflow.actors import keys as keys_module
from byzflow.actors.keys import Keys
from byzflow.actors.link import Frame
from byzflow.actors.tcp import ActorServer
from tests.actors.test_hub import folders  # noqa: F401

Folders = dict[str, Path]


def looked(url: str | None, own: Path | None, **server: Any) -> health.Check:
    """What doctor finds, while a server runs; `url` is of its own if None."""

    async def main() -> health.Check:
        async with ActorServer("tcp://127.0.0.1:0", **server) as running:
            return await asyncio.to_thread(health.connection, url or running.url, None if own is None else str(own))

    return asyncio.run(main())


def expired(monkeypatch: pytest.MonkeyPatch, folder: Path, days: int = 20 * 365) -> Keys:
    """Keys whose certificate was made so many days ago."""
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    fake = SimpleNamespace(
        datetime=SimpleNamespace(now=lambda zone: then), timedelta=datetime.timedelta, UTC=datetime.UTC
    )
    with monkeypatch.context() as patched:
        patched.setattr(keys_module, "datetime", fake)
        return Keys.new(folder.name, folder)


def two(server: Keys, client: Keys) -> tuple[Path, Path]:
    server.trust("client", client.certificate)
    client.trust("server", server.certificate)
    return server.folder, client.folder


def test_all_is_well(folders: Folders) -> None:  # noqa: F811
    found = looked(None, folders["one"], keys=folders["server"])
    assert found.state == "ok", found
    assert "answers in" in found.detail


def test_nobody_is_there() -> None:
    found = looked("tcp://127.0.0.1:1", None)
    assert found.state == "broken"
    assert "cannot be reached" in found.detail
    assert "is `byzflow actor-server` running there, and the port open?" in found.detail


def test_the_other_side_is_somebody_else(folders: Folders, tmp_path: Path) -> None:  # noqa: F811
    here = Keys.new("here", tmp_path / "here")
    here.trust("server", folders["two"] / "own.crt")
    found = looked(None, here.folder, keys=folders["server"])
    assert found.state == "broken"
    assert "does not prove to be whom you trust" in found.detail
    assert "in trusted/ here? (byzflow keys trust)" in found.detail


def test_the_other_side_does_not_trust_this_one(folders: Folders, tmp_path: Path) -> None:  # noqa: F811
    here = Keys.new("here", tmp_path / "here")
    here.trust("server", folders["server"] / "own.crt")
    found = looked(None, here.folder, keys=folders["server"])
    assert found.state == "broken"
    assert "may not trust this side's key (byzflow keys trust NAME own.crt, there)" in found.detail


def test_only_one_side_has_keys(folders: Folders) -> None:  # noqa: F811
    found = looked(None, folders["one"])
    assert found.state == "broken"
    assert "does not speak TLS 1.3" in found.detail
    assert "was it started without --keys?" in found.detail
    found = looked(None, None, keys=folders["server"])
    assert found.state == "broken"
    assert "one side runs without keys" in found.detail


def test_versions_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hello.welcome

    async def older(link: Any, purpose: str, limits: Any) -> Any:
        recv = link.recv

        async def changed() -> Frame:
            frame = await recv()
            return replace(frame, body=["0.99.0", *frame.body[1:]])

        link.recv = changed
        return await real(link, purpose, limits)

    monkeypatch.setattr(hub, "welcome", older)
    found = looked(None, None)
    assert found.state == "broken"
    assert "versions differ: byzflow 0.99.0 asks" in found.detail
    assert "install the same byzflow on both sides" in found.detail


@pytest.mark.parametrize(("seconds", "words"), [(3600.0, "3600 s ahead"), (-120.0, "120 s behind"), (30.0, "")])
def test_clocks_differ(seconds: float, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hello.welcome

    async def elsewhen(link: Any, purpose: str, limits: Any) -> Any:
        send = link.send

        async def changed(frame: Frame) -> None:
            link.send = send
            await send(replace(frame, body=[frame.body[0], frame.body[1] + seconds, *frame.body[2:]]))

        link.send = changed
        return await real(link, purpose, limits)

    monkeypatch.setattr(hub, "welcome", elsewhen)
    found = looked(None, None)
    assert found.state == ("broken" if words else "ok"), found
    assert words in found.detail
    assert ("NTP" in found.detail) == bool(words)


@pytest.mark.parametrize(
    ("whose", "days", "words"),
    [
        ("server", 20 * 365, "has expired: make a new one there (byzflow keys new), and trust it here"),
        ("client", 20 * 365, "this side's certificate has expired; byzflow keys new, in a new folder"),
        ("server", -2, "is not valid yet: is one of the two clocks wrong?"),
    ],
)
def test_a_certificate_that_has_expired(
    whose: str, days: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: dict[bool, Callable[[Path], Keys]] = {
        True: lambda folder: expired(monkeypatch, folder, days),
        False: lambda folder: Keys.new(folder.name, folder),
    }
    server, client = two(*(make[name == whose](tmp_path / name) for name in ("server", "client")))
    found = looked(None, client, keys=server)
    assert found.state == "broken"
    assert words in found.detail


def test_who_is_signed_by_a_trusted_key_is_not_trusted_for_that(folders: Folders, tmp_path: Path) -> None:  # noqa: F811
    """Trust is in the certificate itself: a trusted peer cannot let others in."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    trusted = Keys.of(folders["one"])
    secret = serialization.load_pem_private_key(trusted.key.read_bytes(), None)
    issuer = x509.load_pem_x509_certificate(trusted.certificate.read_bytes())
    guest = Keys.new("guest", tmp_path / "guest")
    own = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "guest")]))
        .issuer_name(issuer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(secret, hashes.SHA256())  # type: ignore[arg-type]
    )
    pem = serialization.Encoding.PEM
    guest.certificate.write_bytes(signed.public_bytes(pem))
    guest.key.write_bytes(own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    guest.trust("server", folders["server"] / "own.crt")

    async def main() -> None:
        async with ActorServer("tcp://127.0.0.1:0", keys=folders["server"]) as server:
            found = await asyncio.to_thread(health.connection, server.url, str(guest.folder))
            assert found.state == "broken"
            assert "may not trust this side's key" in found.detail
            assert server.refused == {"unknown": {"certificate not trusted": 1}}

    asyncio.run(main())
