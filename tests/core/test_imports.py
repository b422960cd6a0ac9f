"""Who may import whom: plugins -> byzflow <- strategies; and what the command line must not wait for."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "byzflow"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/__init__.py"))
STRATEGIES = sorted(path.parent for path in ROOT.glob("strategies/*/__init__.py"))
SIDES = {path.name for path in (*PLUGINS, *STRATEGIES)}
FRAMEWORKS = {"flwr", "lightning", "pytorch_lightning"}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def sources(*packages: Path) -> list[Path]:
    return sorted(file for package in packages for file in package.rglob("*.py"))


def imports(code: str) -> Iterator[str]:
    """Every module that the code imports, with its dots; `importlib.import_module("...")` too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield ast.unparse(node.args[0]).strip("""f'\"""")


OWN_CHILDREN = CORE / "actors" / "objects.py"  # what processes of one owner pass each other


def roots(code: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(code)}


def unsafe(code: str) -> set[str]:
    """Names in the code that read bytes by running them: unpicklers, and loaders that unpickle."""
    found = {name for name in imports(code) if set(name.split(".")) & UNPICKLERS}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name | ast.Attribute):
            name = ast.unparse(node)
            if name in ("torch.load", "np.load", "numpy.load") or name in UNPICKLERS:
                found.add(name)
    return found | ({"torch.load", "numpy.load"} & set(imports(code)))


def third_party(names: set[str]) -> set[str]:
    return names - set(sys.stdlib_module_names)


def test_there_is_something_to_look_at() -> None:
    assert {"byzflow_aggregators", "byzflow_attacks", "byzflow_preaggregators", "byzflow_flower"} <= SIDES
    assert len(sources(CORE)) > 10


@pytest.mark.parametrize("file", sources(CORE), ids=lambda file: str(file.relative_to(ROOT)))
def test_the_core_imports_neither_side(file: Path) -> None:
    assert not roots(file.read_text()) & (SIDES | FRAMEWORKS)


@pytest.mark.parametrize("file", sources(*PLUGINS), ids=lambda file: str(file.relative_to(ROOT)))
def test_plugins_import_byzflow_and_one_another(file: Path) -> None:
    allowed = {"byzflow", "torch", "numpy", *(plugin.name for plugin in PLUGINS)}
    allowed |= {"ray"} if file.parent.name == "byzflow_ray" else set()
    assert third_party(roots(file.read_text())) <= allowed


@pytest.mark.parametrize("file", sources(*STRATEGIES), ids=lambda file: str(file.relative_to(ROOT)))
def test_strategies_know_plugins_by_name_only(file: Path) -> None:
    assert not roots(file.read_text()) & {plugin.name for plugin in PLUGINS}


@pytest.mark.parametrize("file", sources(CORE, *PLUGINS, *STRATEGIES), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_unpickles_but_the_processes_of_one_owner(file: Path) -> None:
    assert not unsafe(file.read_text()) or file == OWN_CHILDREN
    if f"byzflow.actors.{OWN_CHILDREN.stem} import" in file.read_text():
        # between a process and its child, over a socket without a name; and on a cluster of one owner
        assert str(file.relative_to(ROOT)) in ("byzflow/actors/memory_link.py", "plugins/byzflow_ray/backend.py")


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import cloudpickle as p", "import torch; torch.load(f)",
        "from torch import load", "import numpy as np; read = np.load", "from numpy import load as l", "import marshal",
        "import dill.source", "import importlib; importlib.import_module('pickle')",
    ],
)  # fmt: skip
def test_the_search_for_unpicklers_finds(code: str) -> None:
    assert unsafe(code)


def test_the_search_for_imports_finds() -> None:
    code = "def late():\n    import flwr.app\n    from byzflow_attacks.alie import ALIE\nimport_module(f'torch.{x}')"
    assert roots(code) == {"flwr", "byzflow_attacks", "torch"}


HELP = """
import sys
from byzflow.cli import main
sys.argv = ["byzflow", "--help"]
try:
    main()
finally:
    print("HEAVY", sorted({"torch", "numpy", "flwr", "ray", "rich", "pluggy", "matplotlib"} & set(sys.modules)))
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
    assert "doctor" in done.stdout, done.stderr
    assert done.stdout.endswith("HEAVY []\n")


def test_help_answers_at_once(record_property: Callable[[str, object], None]) -> None:
    """0.3 s is the aim on an idle machine; the bound here allows for a loaded one."""
    program = Path(sys.executable).with_name("byzflow")
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60)
        best = min(best, time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    record_property("seconds", best)
    print(f"byzflow --help: {best:.3f} s, best of 5")
    assert best < 1.0


@pytest.mark.parametrize("name", ["byzflow", "byzflow_flower", "byzflow_lightning"])
def test_importing_a_package_imports_nothing_heavy(name: str) -> None:
    script = f"import {name}, sys; print(sorted({{'torch', 'numpy', 'flwr', 'ray', 'lightning'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
