"""Flower's deployment on one machine: a SuperLink and three SuperNodes, with TLS and SuperNode authentication.

    python deploy.py                    # two rounds; the SuperNode "liar" sends arrays under wrong names
    python deploy.py --kill             # three rounds; a SuperNode is killed in the first and started again

Each step is one command of README.md, printed before it runs. Everything lies below one temporary folder, ports are
free ones, and every process is ended. Exit code 0: the run completed, the liar was named in the audit, and a
SuperNode whose key is not registered was refused; 1: something of that did not happen, one line says what.
Needs `openssl` (3.0 or newer) and `ssh-keygen`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
NODES = ("liar", "ann", "bob")  # partition 0 is the Byzantine one: f = 1
LONGEST_RUN = 900  # seconds
COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Failed(Exception):
    """The deployment does not do what it should; the message is one line."""


class Deployment:
    """The processes and files of one deployment below `folder`. Call `end()` whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, *self.node_ports = free_ports(2 + len(NODES))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = os.environ | {
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # the apps' dependencies are installed already
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def certificates(self) -> None:
        """An authority of our own, and the SuperLink's certificate by it, for the names by which it is called."""
        curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 7"
        self.call(f"openssl req -x509 {curve} -subj /CN=authority -keyout ca.key -out ca.crt")
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        self.call(
            f"openssl req -x509 {curve} -subj /CN=superlink -CA ca.crt -CAkey ca.key -addext {names} "
            "-addext basicConstraints=critical,CA:FALSE -keyout server.key -out server.pem"
        )
        home = self.folder / "flwr"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink.tls]\naddress = "127.0.0.1:{self.port}"\nroot-certificates = "{self.folder / "ca.crt"}"\n'
        )

    def superlink(self) -> None:
        """Start the SuperLink, which lets in only SuperNodes whose keys are registered."""
        self.start(
            "superlink",
            "flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key "
            f"--enable-supernode-auth --host 127.0.0.1 --port {self.port} --database state.db",
        )
        self.wait(lambda: answers(self.port), "the SuperLink listens", "superlink")

    def key(self, name: str) -> None:
        """Make a SuperNode's key pair."""
        self.call(f"ssh-keygen -q -t ecdsa -b 384 -N '' -C {name} -f {name}")

    def register(self, name: str) -> int:
        """Register a SuperNode's public key; the node id that belongs to it from now on."""
        return int(json.loads(self.call(f"flwr supernode register {name}.pub tls --format json"))["node-id"])

    def supernode(self, name: str) -> None:
        """Start a SuperNode with its key. It holds the partition of its place in NODES."""
        place = NODES.index(name) if name in NODES else len(NODES)
        self.start(
            name,
            f"flower-supernode --superlink 127.0.0.1:{self.port} --root-certificates ca.crt "
            f"--auth-supernode-private-key {name} --port {self.node_ports[place]} "
            f"--node-config 'partition-id={place} num-partitions={len(NODES)}'",
        )

    def online(self) -> int:
        """How many SuperNodes are online."""
        listed = json.loads(self.call("flwr supernode list tls --format json", quiet=True))
        return sum(node["status"] == "online" for node in listed["nodes"])

    def run(self, app: Path, config: str) -> Iterator[str]:
        """Run an app and yield the lines of its log while they come."""
        shutil.copytree(app, self.folder / "app", ignore=shutil.ignore_patterns(".*", "__*"))
        process = self.start("run", f'flwr run app tls --stream --run-config "{config}"')
        log, rest, deadline = self.folder / "run.log", "", time.monotonic() + LONGEST_RUN
        with log.open(errors="replace") as file:
            while True:
                ended = process.poll() is not None
                *lines, rest = (rest + file.read()).split("\n")
                yield from (COLOUR.sub("", line) for line in lines)
                if ended:
                    return
                if time.monotonic() > deadline:
                    raise Failed(f"the run takes longer than {LONGEST_RUN} s")
                time.sleep(0.2)

    def status(self) -> str:
        """The run's status: `flwr run --stream` exits with 0 even when the run fails, so Flower is asked."""
        return str(json.loads(self.call("flwr ls tls --format json"))["runs"][0]["status"])

    def kill(self, name: str) -> None:
        """Kill a SuperNode and its ClientApps at once, as a machine that loses power."""
        print(f"$ kill -9 {name}", flush=True)
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def call(self, command: str, *, quiet: bool = False) -> str:
        """Run a command in the folder to its end; what it prints."""
        if not quiet:
            print(f"$ {command}", flush=True)
        try:
            done = subprocess.run(
                shlex.split(command), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise Failed(f"{command!r} does not run: {problem}") from None
        if done.returncode:
            raise Failed(f"{command!r} exits with {done.returncode}: {' '.join((done.stdout + done.stderr).split())}")
        return done.stdout

    def start(self, name: str, command: str) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own; what it prints goes to NAME.log."""
        print(f"$ {command} &", flush=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                shlex.split(command),
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.processes[name]

    def wait(self, until: Callable[[], bool], what: str, name: str, seconds: float = 120) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not until():
            if self.processes[name].poll() is not None or time.monotonic() > deadline:
                said = COLOUR.sub("", (self.folder / f"{name}.log").read_text(errors="replace"))
                raise Failed(f"waited in vain until {what}; {name} said: {' '.join(said.split())[-300:]}")
            time.sleep(0.3)

    def end(self) -> None:
        """End every process, gently at first."""
        for signal_, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
            for process in reversed(self.processes.values()):
                with suppress(ProcessLookupError):  # the group may outlive its first process
                    os.killpg(process.pid, signal_)
            deadline = time.monotonic() + patience
            while any(map(group_lives, self.processes.values())) and time.monotonic() < deadline:
                time.sleep(0.1)


def group_lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether any process of the group that this one began is left."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def answers(port: int) -> bool:
    """Whether something listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def deploy(folder: Path, *, rounds: int, kill: bool) -> None:
    """Everything, in order. Raises Failed."""
    deployment = Deployment(folder)
    try:
        deployment.certificates()
        deployment.superlink()
        for name in (*NODES, "stranger"):
            deployment.key(name)
        ids = {name: deployment.register(name) for name in NODES}
        for name in (*NODES, "stranger"):
            deployment.supernode(name)
        deployment.wait(lambda: deployment.online() == len(NODES), f"{len(NODES)} SuperNodes are online", "superlink")
        deployment.wait(lambda: refused(deployment), "the SuperNode with an unregistered key is refused", "superlink")

        log = []
        config = f"aggregator='nnm | trimmed_mean' f=1 attack='wrong_keys' num-server-rounds={rounds}"
        for line in deployment.run(EXAMPLES / "flower_digits", config):
            print(line, flush=True)
            log.append(line)
            if kill and "[ROUND 1/" in line:
                time.sleep(3)  # by now it has its message, and trains
                deployment.kill("bob")
            if kill and "aggregate_train: round 1:" in line:  # the SuperLink has seen that it is gone
                deployment.supernode("bob")
        check(log, deployment.status(), ids, came_back=kill)
    finally:
        deployment.end()


def refused(deployment: Deployment) -> bool:
    """Whether the SuperNode "stranger" was turned away. Its process ends with 1 then, what it started lives on."""
    log = (deployment.folder / "stranger.log").read_text(errors="replace")
    return deployment.processes["stranger"].poll() == 1 and "Failed to activate SuperNode" in log


def check(log: Sequence[str], status: str, ids: Mapping[str, int], *, came_back: bool) -> None:
    """Whether the run was what it should be. Raises Failed."""
    if status != "finished:completed":
        raise Failed(f"the run is {status}, not finished:completed")
    if not any(f"node {ids['liar']} rejected:" in line for line in log):
        raise Failed(f"the audit does not name the SuperNode 'liar', node {ids['liar']}")
    last_round = max((place for place, line in enumerate(log) if "[ROUND " in line), default=0)
    if came_back and not any(f"node {ids['bob']} weighs" in line for line in log[last_round:]):
        raise Failed(f"the SuperNode 'bob', node {ids['bob']}, was killed and takes no part in the last round")
    print(f"The run is {status}; the audit names the liar, node {ids['liar']}; the stranger was refused.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="rounds of training (default: 2, with --kill 3)")
    parser.add_argument("--kill", action="store_true", help="kill a SuperNode in round 1 and start it again")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="use this new folder and leave keys and logs in it")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every process is ended then too
    folder = options.keep or Path(tempfile.mkdtemp(prefix="byzflow-"))
    try:
        if options.keep:
            folder.mkdir()
        deploy(folder.resolve(), rounds=options.rounds or 2 + options.kill, kill=options.kill)
    except (Failed, FileExistsError) as problem:
        print(f"deploy: {problem}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
