"""`byzflow actor-server`: lend this host's workers to those whom it trusts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import signal
from pathlib import Path

import click

ANY = "tcp://127.0.0.1:0, which takes a free port"


@click.command(name="actor-server", short_help="Lend this host's workers to those whom it trusts.")
@click.option("--listen", default="tcp://127.0.0.1:7000", show_default=True, help="Address; port 0 takes a free one.")
@click.option("--keys", type=click.Path(path_type=Path), help="Folder of keys; needed beyond this host.")
@click.option("--plain", is_flag=True, help="Go without encryption and authentication, with a warning.")
@click.option("--connections", type=click.IntRange(1), default=128, show_default=True, help="At most so many at once.")
@click.option("--keep", type=click.FloatRange(0), default=0.0, help="Seconds that a worker waits to be dialled again.")
@click.option("--ucx", is_flag=True, help="Also serve ucx:// on the network of UCX_NET_DEVICES.")
@click.option("--trusted-fabric", is_flag=True, help="Needed for --ucx: none but trusted hosts are on that network.")
def command(
    listen: str, keys: Path | None, plain: bool, connections: int, keep: float, ucx: bool, trusted_fabric: bool
) -> None:
    """Serve workers until interrupted; each connection is one worker, and ends with it, or --keep seconds after."""
    from byzflow.actors.tcp import ActorServer
    from byzflow.errors import ActorError

    if not math.isfinite(keep):
        raise ActorError(f"--keep must be a finite number of seconds, got {keep}")

    async def main() -> None:
        server = ActorServer(
            listen,
            keys=keys,
            plain=plain,
            connections=connections,
            keep=keep,
            ucx=ucx,
            trusted_fabric=trusted_fabric,
        )
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(server)
            except OSError as error:
                step = "take another port" if error.errno == errno.EADDRINUSE else "give an address of this host"
                raise ActorError(f"cannot listen at {listen}: {error.strerror}; {step}, such as {ANY}") from None
            tls = "" if server.hub.keys is None else ", TLS, trusted peers only"
            click.echo(f"serving at {server.url}{tls}{', UCX' if ucx else ''}")
            await ended.wait()
        for peer, reasons in server.refused.items():
            for reason, count in reasons.items():
                click.echo(f"refused {count}x {peer}: {reason}")

    asyncio.run(main())
