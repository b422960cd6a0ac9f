"""Two hosts that share nothing but a network: workers of one serve the other, in both directions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from byzflow.actors.keys import Keys
from tests.namespaces import Host, hosts, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available")

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
BYZFLOW = [sys.executable, "-c", "from byzflow.cli import main; main()"]


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Host]]:
    with hosts(2) as made:
        yield made


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder for each of the two."""
    root = tmp_path_factory.mktemp("keys")
    one, other = Keys.new("one", root / "one"), Keys.new("other", root / "other")
    one.trust("other", other.certificate)
    other.trust("one", one.certificate)
    return [one.folder, other.folder]


@contextmanager
def server(host: Host, folder: Path) -> Iterator[str]:
    """`byzflow actor-server` on a host."""
    listen = ["actor-server", "--listen", f"tcp://{host.address}:7000", "--keys", str(folder)]
    with host.popen([*BYZFLOW, *listen], env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"serving at tcp://{host.address}:7000, TLS, trusted peers only\n"
        yield f"tcp://{host.address}:7000"


def program(what: str, url: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "tests.actors.other_host", what, url, str(folder)]


def ask(host: Host, what: str, url: str, folder: Path) -> Any:
    """What the program of tests/actors/other_host.py says, run on a host."""
    try:
        done = host.run(program(what, url, folder), env=ENVIRONMENT, cwd=ROOT, timeout=120)
    except subprocess.CalledProcessError as error:
        raise AssertionError(error.stderr) from None
    return json.loads(done.stdout)


def test_hosts_share_nothing_but_their_network(pair: list[Host]) -> None:
    one, other = pair
    one.run(["touch", "/dev/shm/mine"])
    assert one.run(["ls", "/dev/shm"]).stdout == "mine\n"
    assert other.run(["ls", "/dev/shm"]).stdout == ""
    assert not Path("/dev/shm/mine").exists()
    with one.popen(["sleep", "1000"]):
        assert "sleep 1000" in one.run(["ps", "-eo", "args"]).stdout
        assert "sleep 1000" not in other.run(["ps", "-eo", "args"]).stdout
    assert "eth0" in one.run(["ip", "-brief", "address"]).stdout
    with pytest.raises(subprocess.CalledProcessError):  # no way to anywhere else
        one.run(["ip", "route", "get", "192.0.2.1"])


def test_hosts_are_gone_when_who_made_them_is_killed() -> None:
    work = "import time\nfrom tests.namespaces import hosts\n"
    code = work + "with hosts(2) as made: print(made[0].pid, flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        process.kill()
        process.wait()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        subprocess.run(["sleep", "0.05"], check=True)
    raise AssertionError(f"process {pid} outlived the test that made it")


@pytest.mark.parametrize("there", [1, 0], ids=["one to other", "other to one"])
def test_tensors_cross_and_come_back(pair: list[Host], keys: list[Path], there: int) -> None:
    with server(pair[there], keys[there]) as url:
        assert ask(pair[1 - there], "back_and_forth", url, keys[1 - there]) == {"wrong": [], "aggregate": True}


@pytest.mark.parametrize("there", [1, 0], ids=["one to other", "other to one"])
def test_an_operator_runs_on_tiles_that_the_other_host_holds(pair: list[Host], keys: list[Path], there: int) -> None:
    with server(pair[there], keys[there]) as url:
        found = ask(pair[1 - there], "tiles", url, keys[1 - there])
    for spec, gap in found["gaps"].items():
        assert gap <= (0 if spec == "median" else 1e-5), f"{spec} differs by {gap}"
        answers = 2 if spec.startswith("alie") else 1
        assert found["sent"][spec] < 10_000, f"{spec}: {found['sent'][spec]} bytes went there"  # sums of 10 x 10
        assert found["came"][spec] < answers * 4 * 200_000 + 10_000, f"{spec}: {found['came'][spec]} bytes came"


def test_a_stranger_on_the_network_is_not_served(pair: list[Host], keys: list[Path], tmp_path: Path) -> None:
    stranger = Keys.new("stranger", tmp_path / "stranger")
    stranger.trust("other", keys[1] / "own.crt")
    with server(pair[1], keys[1]) as url, pytest.raises(AssertionError, match="may not trust this side's key"):
        ask(pair[0], "back_and_forth", url, stranger.folder)


@pytest.mark.slow
def test_a_host_that_falls_silent_ends_the_call(keys: list[Path]) -> None:
    with hosts(2) as (one, other), server(other, keys[1]) as url:
        pipes = {"stdin": subprocess.PIPE, "env": ENVIRONMENT, "cwd": ROOT}
        with one.popen(program("lost", url, keys[0]), **pipes) as client:
            assert client.stdout is not None
            assert client.stdin is not None
            assert client.stdout.readline() == "ready\n"
            other.run(["ip", "link", "set", "eth0", "down"])
            client.stdin.write("\n")
            client.stdin.flush()
            found = json.loads(client.stdout.readline())
        assert "ended, because worker 'there-0' died with its tile" in found["error"]
        assert found["seconds"] < 25


@pytest.mark.slow
def test_what_follows_a_body_of_seven_seconds_arrives(keys: list[Path]) -> None:
    with hosts(2) as (one, other), server(other, keys[1]) as url:
        one.slow_down(100)
        found = ask(one, "large_then_small", url, keys[0])
    assert found["seconds"] > 5
    assert found["came"] == [True, True, True]
