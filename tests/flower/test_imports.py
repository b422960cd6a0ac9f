"""Importing the package is cheap; what it offers comes when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import byzflow_flower


def test_importing_the_package_imports_neither_flower_nor_torch() -> None:
    code = "import byzflow_flower, sys; dir(byzflow_flower); print({'torch', 'flwr', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_name_that_is_offered_exists() -> None:
    for name in byzflow_flower.__all__:
        assert getattr(byzflow_flower, name) is not None


def test_only_compat_imports_what_flower_keeps_private() -> None:
    from pathlib import Path

    public = ("flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp")
    home = Path(byzflow_flower.__file__).parent
    lines = {
        f"{path.name}: {line.strip()}"
        for path in home.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(("from flwr", "import flwr")) and line.split()[1] not in public
    }
    assert {line.split(":")[0] for line in lines} == {"compat.py", "legacy.py"}  # the latter serves a deprecated API
