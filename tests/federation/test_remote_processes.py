"""A star whose processes are killed, restarted, slow to write, or on hosts that share nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from byzflow.actors import socket_link
from byzflow.actors.keys import Keys
from byzflow.errors import FederationError
from byzflow.federation import checkpoint
from byzflow.federation.remote_server import RemoteServer
from byzflow.federation.remote_worker import RemoteWorker
from tests.federation.remote_runs import (
    ENVIRONMENT,
    NODE,
    ROOT,
    free_port,
    in_one_process,
    nodes,
    process,
    rounds_in,
    setup,
    star,
    until,
    write,
)
from tests.namespaces import hosts, unavailable


@pytest.mark.slow
def test_the_local_script_runs_over_tls_and_exits_with_0() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "remote_tcp" / "test_local.sh")],
        env=ENVIRONMENT | {"ROUNDS": "15", "PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 rounds, loss" in done.stdout
    assert "models different in rounds none" in done.stdout
    assert "TLS" in done.stdout


@pytest.mark.slow
def test_a_killed_worker_a_silent_one_and_a_killed_server_do_not_end_the_run(tmp_path: Path) -> None:
    """Kill -9 of one honest worker while another is silent, and then of the server: the others rejoin it."""
    metrics, kept = tmp_path / "rounds.jsonl", tmp_path / "server.safetensors"
    plain = nodes(
        free_port(),
        honest=4,
        byzantine=1,
        training={"rounds": 10_000, "quorum": 2, "deadline": 1.0, "patience": 60.0, "evaluate_every": 50},
        aggregation={"method": "coordinate_wise_median", "f": 2},
        checkpoint={"path": str(kept), "every": 1},
        metrics=str(metrics),
    )
    config = write(plain, tmp_path / "nodes.json")
    server = ("--config", config, "--role", "server")
    with ExitStack() as stack:
        first = stack.enter_context(process(*server))
        workers = [
            stack.enter_context(process("--config", config, "--role", "worker", "--worker-id", id)) for id in (0, 1, 2)
        ]
        until(lambda: len(rounds_in(metrics)) > 5 and 2 in rounds_in(metrics)[-1]["connected"])
        os.kill(workers[2].pid, signal.SIGKILL)
        before = len(rounds_in(metrics))
        until(lambda: len(rounds_in(metrics)) > before + 5)
        assert 2 in rounds_in(metrics)[-1]["missing"]
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        done = rounds_in(metrics)
        assert [each["round"] for each in done] == list(range(len(done)))
        second = stack.enter_context(process(*server, "--rounds", len(done) + 30))
        assert second.stdout is not None
        told = second.stdout.read()
        assert second.wait(60) == 0, told
        assert [worker.wait(60) for worker in workers[:2]] == [0, 0]
    all_rounds = rounds_in(metrics)
    numbers = [each["round"] for each in all_rounds]
    resumed = numbers[len(done)]
    assert resumed - len(done) in (0, 1)  # one may have been in the checkpoint, but not yet in the metrics
    assert numbers == [*range(len(done)), *range(resumed, len(done) + 30)]
    assert f"resumed from {kept}: {resumed} rounds are done" in told
    assert {0, 1} <= set(all_rounds[-1]["connected"])
    assert all(each["equal"] for each in all_rounds)


@pytest.mark.parametrize("method", ["coordinate_wise_median", "centered_clipping(tau=0.1)"])
def test_a_restarted_server_ends_with_the_model_of_a_run_without_a_crash(tmp_path: Path, method: str) -> None:
    """No round is applied twice or lost, though the checkpoint is three rounds old: bit by bit."""
    kept = {"path": str(tmp_path / "server.safetensors"), "every": 3}
    plain = nodes(
        free_port(),
        honest=3,
        training={"rounds": 20, "quorum": 3, "evaluate_every": 0},
        aggregation={"method": method},
        checkpoint=kept,
    )

    async def main() -> str:
        made = setup(plain)
        workers = [asyncio.create_task(RemoteWorker(made, id).run()) for id in range(3)]
        crashed = RemoteServer(made)
        running = asyncio.create_task(crashed.run())
        while len(crashed.history) < 8:
            await asyncio.sleep(0.001)
        for link in [line.link for line in crashed.network.lines.values()]:
            link.refuse("a crash")
        crashed.network.post = lambda *told: None  # type: ignore[method-assign]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server = RemoteServer(made)
        assert 6 <= server.next < 20
        assert server.next % 3 == 0
        assert bool(server.defence.state) == method.startswith("centered")  # what the rule remembers goes on
        async with asyncio.timeout(60):
            await server.run()
            outcomes = await asyncio.gather(*workers)
        assert {each.digest for each in outcomes} == {server.centre.digest()}
        return server.centre.digest()

    assert asyncio.run(main()) == in_one_process(plain)


def test_a_checkpoint_that_cannot_be_written_is_told_of_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    server, outcomes = asyncio.run(star(nodes(free_port(), checkpoint={"path": str(tmp_path / "file" / "kept")})))
    assert all("no checkpoint was written" in report.errors["server"] for report in server.history)
    assert {each.digest for each in outcomes} == {server.centre.digest()}


def test_a_slow_disk_stalls_no_link_and_the_file_is_the_round_s_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_link, "BEAT", 0.02)
    kept, training = tmp_path / "kept.safetensors", {"rounds": 3, "quorum": 3, "deadline": 5.0}
    made = setup(nodes(free_port(), honest=3, training=training, checkpoint={"path": str(kept)}))
    server, said = RemoteServer(made), list[str]()
    server.say = said.append
    before, rounds, beats, writing = [server.centre.digest()], list[int](), list[int](), list[int]()

    def beaten() -> int:
        return sum(line.link._taken for line in server.network.lines.values())

    async def asked(done: int) -> None:
        """A worker that asks for the model meanwhile gets what the disk already has, and the round that it begins."""
        assert (server.next, server.centre.digest()) == (done, before[done])
        assert server._send_again(done)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def slow(path: Any, state: dict[str, Any]) -> None:
            writing.append(1)
            assert len(writing) == 1
            asyncio.run_coroutine_threadsafe(asked(len(rounds)), loop).result(5)  # the loop goes on
            began = beaten()
            time.sleep(0.3)
            beats.append(beaten() - began)
            save(path, state)
            rounds.append(checkpoint.load(path)["round"])
            again = RemoteServer(made)
            assert again.next == rounds[-1]
            before.append(again.centre.digest())
            writing.clear()

        monkeypatch.setattr(checkpoint, "save", slow)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(server.run())
            outcomes = [group.create_task(RemoteWorker(made, id).run()) for id in range(3)]
        assert {each.result().digest for each in outcomes} == {server.centre.digest()}

    save = checkpoint.save
    asyncio.run(main())
    assert rounds == [1, 2, 3]
    assert [digest for report in server.history for digest in report.digests] == before[1:]  # one model in each round
    assert min(beats) >= 3  # in 0.3 s, in which three workers could send 15 each
    assert not [line for line in said if "another model" in line]
    state = checkpoint.load(kept)
    assert torch.equal(state["vector"], server.centre.model.get())
    assert server.centre.velocity is not None
    assert torch.equal(state["velocity"], server.centre.velocity)


def test_a_server_that_finds_all_rounds_done_tells_its_workers(tmp_path: Path) -> None:
    """It was killed after its last step, before it said stop."""
    plain = nodes(free_port(), training={"rounds": 2}, checkpoint={"path": str(tmp_path / "kept.safetensors")})
    first, _ = asyncio.run(star(plain))
    second, outcomes = asyncio.run(star(plain))
    assert len(second.history) == 0
    assert {each.digest for each in outcomes} == {first.centre.digest()}
    assert {each.rounds for each in outcomes} == {2}


def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path: Path) -> None:
    kept = {"path": str(tmp_path / "kept.safetensors")}
    asyncio.run(star(nodes(free_port(), training={"rounds": 2}, checkpoint=kept)))
    with pytest.raises(FederationError, match="is of run 'byzflow' or of another model"):
        RemoteServer(setup(nodes(free_port(), checkpoint=kept, run="other")))
    assert RemoteServer(setup(nodes(free_port(), checkpoint=kept))).next == 2
    assert RemoteServer(setup(nodes(free_port(), checkpoint=kept | {"resume": False}))).next == 0


def test_a_worker_without_a_server_says_where_it_looked_and_gives_up(tmp_path: Path) -> None:
    port = free_port()
    config = write(nodes(port, training={"patience": 1.0}), tmp_path / "nodes.json")
    with process("--config", config, "--role", "worker", "--worker-id", 0) as worker:
        assert worker.stdout is not None
        told = worker.stdout.read()
        assert worker.wait(30) == 2
    assert f"127.0.0.1:{port}" in told
    for hint in ("is the other side started?", "firewall", "the right address in the file?"):
        assert hint in told
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available")
def test_a_server_and_three_workers_on_hosts_that_share_nothing(tmp_path: Path) -> None:
    with hosts(4) as machines, ExitStack() as stack:
        names = ["server", "worker-0", "worker-1", "worker-2"]
        keys = {name: Keys.new(name, tmp_path / name) for name in names}
        for name in names[1:]:
            keys["server"].trust(name, keys[name].certificate)
            keys[name].trust("server", keys["server"].certificate)
        plain = nodes(9000, honest=3, training={"rounds": 5, "quorum": 3, "patience": 60.0})
        plain["server"] |= {"host": machines[0].address, "bind_host": "0.0.0.0"}
        config = write(plain, tmp_path / "nodes.json")
        running = []
        for place, (machine, name) in enumerate(zip(machines, names, strict=True)):
            role = ["server"] if name == "server" else ["worker", "--worker-id", str(place - 1)]
            arguments = ["--config", str(config), "--keys", str(tmp_path / name), "--json", "--role", *role]
            running.append(
                stack.enter_context(machine.popen([*NODE, *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE))
            )
        told = [process.communicate(timeout=90) for process in running]
        assert [process.returncode for process in running] == [0] * 4, told
    ends = [json.loads(out.splitlines()[-1]) for out, _ in told]
    assert len({each["digest"] for each in ends}) == 1
    assert all(json.loads(line)["equal"] for line in told[0][0].splitlines()[:-1])
