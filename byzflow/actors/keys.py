"""Who is who between hosts: a certificate of one's own for each, and the certificates of those whom one trusts.

DIR/own.key  DIR/own.crt      this side; the key is readable by its owner alone
DIR/trusted/NAME.crt          the others, under the names that they have here
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from byzflow.errors import KeyFault

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
YEARS = 10


@dataclass(frozen=True)
class Keys:
    """A folder of keys."""

    folder: Path

    @classmethod
    def of(cls, folder: str | Path) -> Keys:
        """An existing one. Raises KeyFault if there is no key in it, or one that others can read."""
        keys = cls(Path(folder))
        if not (keys.key.exists() and keys.certificate.exists()):
            raise KeyFault(
                f"{folder} holds no own.key and own.crt: make them by `byzflow keys new NAME --dir {folder}`"
            )
        if keys.key.stat().st_mode & 0o077:
            raise KeyFault(f"{keys.key} can be read by others: chmod 600 {keys.key}")
        return keys

    @classmethod
    def new(cls, name: str, folder: str | Path) -> Keys:
        """A fresh key and its certificate, self-signed. Raises KeyFault for a bad name, or if there is one already."""
        if not NAME.fullmatch(name):
            raise KeyFault(f"{name!r} is no name: 1 to 64 letters, digits, '.', '_' or '-'")
        keys = cls(Path(folder))
        if keys.key.exists():
            raise KeyFault(f"{keys.key} is there already; another folder, or remove it to be somebody new")
        try:
            from cryptography import x509
            from cryptography.hazmat.primitives import hashes, serialization
            from cryptography.hazmat.primitives.asymmetric import ec
        except ImportError:
            raise KeyFault("making keys needs the package cryptography: pip install 'byzflow[net]'") from None
        secret = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(secret.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(secret, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        plain = secret.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with _written_to(keys.folder):
            keys.trusted.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(keys.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(plain)
            keys.certificate.write_bytes(certificate.public_bytes(pem))
        return keys

    @property
    def key(self) -> Path:
        """The secret."""
        return self.folder / "own.key"

    @property
    def certificate(self) -> Path:
        """What others are given."""
        return self.folder / "own.crt"

    @property
    def trusted(self) -> Path:
        """The folder of the others' certificates."""
        return self.folder / "trusted"

    def trust(self, name: str, certificate: str | Path) -> None:
        """Know another side by this name. Raises KeyFault if the file is no certificate, or known by another name."""
        if not NAME.fullmatch(name):
            raise KeyFault(f"{name!r} is no name: 1 to 64 letters, digits, '.', '_' or '-'")
        try:
            text = Path(certificate).read_text()
            mark = fingerprint(ssl.PEM_cert_to_DER_cert(text))
        except OSError as error:
            raise KeyFault(f"{certificate} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise KeyFault(f"{certificate} is no certificate: {error}") from None
        if self.names().get(mark, name) != name:
            raise KeyFault(f"{certificate} is trusted already, as {self.names()[mark]}")
        with _written_to(self.folder):
            self.trusted.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.trusted / f"{name}.crt").write_text(text)

    def names(self) -> dict[str, str]:
        """Fingerprint -> name of everybody trusted."""
        return {
            fingerprint(ssl.PEM_cert_to_DER_cert(file.read_text())): file.stem
            for file in sorted(self.trusted.glob("*.crt"))
        }

    def expires(self) -> float:
        """Until when one's own certificate is valid, in seconds since 1970, UTC."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.certificate)
        ends = [ssl.cert_time_to_seconds(str(each["notAfter"])) for each in context.get_ca_certs()]
        return float(min(ends, default=float("inf")))

    def context(self, server: bool) -> ssl.SSLContext:
        """TLS 1.3 in which both sides show their certificate, and only the trusted ones are let in."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # identity is the pinned certificate, not the address
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.certificate, self.key)
        for file in self.trusted.glob("*.crt"):
            context.load_verify_locations(file)
        return context


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KeyFault(f"keys cannot be written to {folder}: {error.strerror}; name another folder") from None


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate's bytes (DER), in hex."""
    return hashlib.sha256(certificate).hexdigest()
