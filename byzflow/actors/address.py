"""Where a party listens, and whether the way there needs keys."""

from __future__ import annotations

import ipaddress
import warnings
from pathlib import Path
from urllib.parse import urlsplit

from byzflow.actors.keys import Keys
from byzflow.errors import ActorError


def address(url: str, scheme: str = "tcp") -> tuple[str, int]:
    """Host and port of scheme://host:port. Raises ActorError."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != scheme or not parts.hostname or port is None or parts.path or parts.query:
        raise ActorError(f"{url!r} is no address; write {scheme}://host:7000")
    return parts.hostname, port


def is_here(host: str) -> bool:
    """If only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keys_for(host: str, keys: str | Path | Keys | None, plain: bool) -> Keys | None:
    """None for a link without encryption: on this host only, or where `plain` was asked for, with a warning."""
    if keys is not None:
        return keys if isinstance(keys, Keys) else Keys.of(keys)
    if not is_here(host):
        if not plain:
            raise ActorError(
                f"{host} is not this host: give keys=DIR (byzflow keys new), or plain=True to go without; "
                "on the command line --keys DIR, or --plain"
            )
        warnings.warn(f"the link to {host} is neither encrypted nor authenticated", stacklevel=3)
    return None
