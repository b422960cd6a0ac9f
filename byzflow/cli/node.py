"""`byzflow node`: one process of a federation whose nodes are processes, here or on many hosts."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click


@click.command(name="node", short_help="Be one process of a federation over TCP.")
@click.option("--config", type=click.Path(path_type=Path), required=True, help="The file of all nodes, YAML or JSON.")
@click.option("--role", type=click.Choice(["server", "worker", "peer"]), required=True, help="What this process is.")
@click.option("--worker-id", "--node-id", "id", type=click.IntRange(0), help="Which worker or peer of the file it is.")
@click.option(
    "--worker-type", "--node-type", "kind", type=click.Choice(["honest", "byzantine"]), help="Instead of the file's."
)
@click.option("--rounds", type=click.IntRange(0), help="Instead of the file's; the server's word counts.")
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Where MNIST and CIFAR-10 are.",
)
@click.option("--keys", type=click.Path(path_type=Path), help="This node's folder of keys; needed beyond this host.")
@click.option("--plain", is_flag=True, help="Go without encryption and authentication, with a warning.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each round, and one at the end.")
def command(
    config: Path,
    role: str,
    id: int | None,
    kind: Any,
    rounds: int | None,
    data_root: Path,
    keys: Path | None,
    plain: bool,
    as_json: bool,
) -> None:
    """Be one node of the run that a file describes: its server, one of its workers, or a peer in a run without."""
    from byzflow.errors import SpecError
    from byzflow.federation import nodes_file

    if (role == "server") != (id is None):
        raise SpecError(
            "a server has no id: leave out --worker-id"
            if role == "server"
            else f"--role {role} needs --{'worker' if role == 'worker' else 'node'}-id"
        )
    if role == "server" and kind is not None:
        raise SpecError("--worker-type is for workers and peers: leave it out for a server")
    file = nodes_file.read(config)
    if role != "server" and id is not None:
        file.member(id, "nodes" if role == "peer" else "workers")

    def say(line: str) -> None:
        click.echo(f"[{role if id is None else f'{role} {id}'}] {line}", err=as_json)

    from byzflow.federation.remote import setup
    from byzflow.federation.typed_file import at

    for note in nodes_file.notes(file):
        say(note)
    with at(str(config)):
        made = setup(file, "nodes" if role == "peer" else "workers", data_root, keys, plain, say)
    try:
        match role:
            case "server":
                _server(made, rounds, say, as_json)
            case "worker":
                _worker(made, id, kind, say, as_json)
            case _:
                _peer(made, id, kind, rounds, say, as_json)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)


def _server(made: Any, rounds: int | None, say: Any, as_json: bool) -> None:
    from byzflow.federation.remote_server import RemoteServer

    with _Lines(made.file.metrics) as lines:

        def show(report: Any) -> None:
            digest = next(iter(report.digests))
            extra = {"digest": digest, "equal": len(report.digests) == 1}
            lines.write(line := json.dumps(report.as_dict() | extra, default=str))
            if as_json:
                click.echo(line)
                return
            same = "all models equal" if len(report.digests) == 1 else f"{len(report.digests)} different models"
            who = ", ".join(str(each) for each in report.connected)
            say(f"{report.line().replace(' connected', f' connected: {who}', 1)} | {same}: {digest[:12]}")

        server = RemoteServer(made, rounds, say=say, sinks=[show])
        history = asyncio.run(server.run())
    last = history[-1].metrics if len(history) else {}
    _end(say, as_json, server.next, server.centre.digest(), dict(last))


def _worker(made: Any, id: Any, kind: Any, say: Any, as_json: bool) -> None:
    from byzflow.federation.remote_worker import RemoteWorker

    done = asyncio.run(RemoteWorker(made, id, kind, say=say).run())
    _end(say, as_json, done.rounds, done.digest, done.metrics)


def _peer(made: Any, id: Any, kind: Any, rounds: int | None, say: Any, as_json: bool) -> None:
    from byzflow.federation.remote_peer import RemotePeer

    with _Lines(made.file.metrics and f"{made.file.metrics}.{id}") as lines:

        def show(report: Any) -> None:
            lines.write(line := json.dumps(report.as_dict(), default=str))
            click.echo(line) if as_json else say(report.line())

        done = asyncio.run(RemotePeer(made, id, kind, rounds, say=say, sinks=[show]).run())
    _end(say, as_json, done.rounds, done.digest, done.metrics)


def _end(say: Any, as_json: bool, rounds: int, digest: str, metrics: dict[str, float]) -> None:
    if as_json:
        click.echo(json.dumps({"end": True, "rounds": rounds, "digest": digest, "metrics": metrics}))
    else:
        numbers = "".join(f", {name} {value:.4f}" for name, value in metrics.items())
        say(f"done after {rounds} rounds{numbers}; model {digest[:12]}")


class _Lines:
    """A file of lines, or none."""

    def __init__(self, path: str | None) -> None:
        self.path = path

    def __enter__(self) -> _Lines:
        from byzflow.errors import SpecError

        try:
            self.file = None if self.path is None else open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise SpecError(f"metrics: {self.path} cannot be written: {error.strerror}") from None
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, line: str) -> None:
        """One line, at once."""
        if self.file is not None:
            self.file.write(line + "\n")
            self.file.flush()
