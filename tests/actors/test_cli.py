"""`byzflow keys`, `byzflow actor-server` and `byzflow doctor --connect`, as programs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import byzflow
from byzflow.actors import resolve
from byzflow.cli import group


def run(*arguments: str) -> Result:
    return CliRunner().invoke(group, arguments)


@contextmanager
def server(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    program = "from byzflow.cli import main; main()"
    command = [sys.executable, "-c", program, "actor-server", "--listen", "tcp://127.0.0.1:0", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[2].rstrip(","), process
        finally:
            process.kill()


def test_two_sides_meet_by_their_keys(tmp_path: Path) -> None:
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    for name in (here, there):
        assert run("keys", "new", Path(name).name, "--dir", name).exit_code == 0
    assert run("keys", "trust", "lab", f"{there}/own.crt", "--dir", here).exit_code == 0
    with server("--keys", there) as (url, _):  # which does not trust this side yet
        result = run("doctor", "--connect", url, "--keys", here)
        assert result.exit_code == 1
        assert "may not trust this side's key" in " ".join(result.output.split())
    assert run("keys", "trust", "desk", f"{here}/own.crt", "--dir", there).exit_code == 0
    assert json.loads(run("keys", "list", "--dir", there, "--json").stdout).keys() == {"desk"}
    with server("--keys", there) as (url, process):
        result = run("doctor", "--connect", url, "--keys", here, "--json")
        assert result.exit_code == 0, result.output
        assert "answers in" in json.loads(result.stdout)["checks"][0]["detail"]

        async def main() -> torch.Tensor:
            worker = resolve(url, keys=here)
            await worker.start("w")
            rows = torch.arange(15.0).reshape(5, 3)
            try:
                value: torch.Tensor = await worker.call(byzflow.aggregate, ("krum", rows), {"f": 1})
                return value
            finally:
                await worker.close()

        assert torch.equal(asyncio.run(main()), byzflow.aggregate("krum", torch.arange(15.0).reshape(5, 3), f=1))
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("actor-server", "--listen", "tcp://0.0.0.0:0"), "is not this host: give keys=DIR"),
        (("actor-server", "--listen", "7000"), "is no address; write tcp://host:7000"),
        (("actor-server", "--keys", "nowhere"), "holds no own.key and own.crt"),
        (("actor-server", "--ucx"), "trusted_fabric=True says that nobody else is on its network"),
        (("keys", "new", "a b"), "is no name"),
        (("keys", "list", "--dir", "nowhere"), "nowhere is no folder of keys"),
        (("keys", "trust", "x", "nothing.crt"), "nothing.crt cannot be read: No such file"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
