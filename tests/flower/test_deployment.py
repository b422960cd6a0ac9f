"""The deployment example: TLS and SuperNode authentication on, a liar, a stranger, a SuperNode killed and restarted."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.flower_deployment import deploy
from tests.flower_home import CAN_END, end, started_with

SCRIPT = Path(deploy.__file__)
IDS = {"liar": 1, "ann": 2, "bob": 3}
LOG = ["[ROUND 1/2]", "node 1 rejected: other keys", "node 3 weighs 0.5", "[ROUND 2/2]", "node 2 weighs 1.0"]


def test_what_a_run_must_show() -> None:
    deploy.check(LOG, "finished:completed", IDS, came_back=False)
    with pytest.raises(deploy.Failed, match="the run is finished:failed"):
        deploy.check(LOG, "finished:failed", IDS, came_back=False)
    with pytest.raises(deploy.Failed, match="does not name the SuperNode 'liar', node 2"):
        deploy.check(LOG, "finished:completed", IDS | {"liar": 2}, came_back=False)
    with pytest.raises(deploy.Failed, match="'bob', node 3, was killed"):
        deploy.check(LOG, "finished:completed", IDS, came_back=True)


def test_it_needs_a_new_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"deploy: [Errno 17] File exists: '{tmp_path}'\n"


@pytest.mark.slow
@pytest.mark.skipif(not CAN_END, reason="looks in /proc for what is left running")
@pytest.mark.skipif(not all(map(shutil.which, ("openssl", "ssh-keygen"))), reason="needs openssl and ssh-keygen")
def test_it_completes_names_the_liar_and_leaves_nothing(tmp_path: Path) -> None:
    """With `--kill`, which does all that the script does without."""
    folder = tmp_path / "deployment"
    command = [sys.executable, str(SCRIPT), "--keep", str(folder), "--kill"]
    variable = f"FLWR_HOME={folder.resolve() / 'flwr'}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        deadline = time.monotonic() + 10  # what the SuperLink started ends by itself when it sees that it is alone
        while started_with(variable) and time.monotonic() < deadline:
            time.sleep(0.2)
        left = started_with(variable)
    finally:
        end(variable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left == []
    assert "The run is finished:completed; the audit names the liar" in done.stdout
    # Why the stranger was refused is said by the SuperLink alone.
    assert "No SuperNode found with the given public key" in (folder / "superlink.log").read_text()
    assert "SuperNode ID" not in (folder / "stranger.log").read_text()
    assert done.stdout.count("$ kill -9 bob") == 1
