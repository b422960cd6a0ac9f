"""`byzflow new flower-app NAME`: a Flower app to start from.

The template in templates/flower_app is an app that works as it stands, so ruff and the tests read it as they read any
other code; here its two names are replaced. Flower's own `flwr new` fetches its templates from the internet.
"""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from byzflow.errors import ByzflowError

PROJECT, PACKAGE = "byzflow-app", "byzflow_app"  # as the template has them
TAKEN = frozenset({"byzflow", "byzflow_flower", "flwr", "numpy", "sklearn", "torch"}) | sys.stdlib_module_names
KINDS = (".py", ".toml", ".md")


@click.command(name="flower-app", short_help="A Flower app that lying clients cannot steer.")
@click.argument("name")
def command(name: str) -> None:
    """Write a Flower app into the new folder NAME, in Flower's own layout, that `flwr run` runs offline."""
    written = write(name, Path())
    click.echo(
        f"Wrote {len(written)} files to {name}/. To run it, with two of ten clients lying:\n\n"
        f"    cd {name}\n"
        "    export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1\n"
        '    flwr run . --stream --federation-config "num-supernodes=10 client-resources-num-cpus=1" \\\n'
        "        --run-config \"attack='sign_flip'\"\n"
    )


def write(name: str, into: Path) -> list[Path]:
    """Write the app into the new folder `into / name`; the files. Raises ByzflowError for a bad name or folder."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*", name) or len(name) > 60:
        raise ByzflowError(
            f"{name[:60]!r} is no name for an app: at most 60 letters, digits, and single '-' or '_' between them, "
            "such as my-app"
        )
    package = name.lower().replace("-", "_")
    if package in TAKEN or keyword.iskeyword(package):
        raise ByzflowError(f"an app named {name!r} would hide the Python module {package!r}; try {name}-app")
    folder = into / name
    try:
        folder.mkdir()
        template = files("byzflow_flower") / "templates" / "flower_app"
        return _copy(template, folder, {PROJECT: name.lower().replace("_", "-"), PACKAGE: package})
    except FileExistsError:
        raise ByzflowError(f"{folder} exists already; choose another name, or move it away") from None
    except OSError as problem:
        raise ByzflowError(f"cannot write {folder}: {problem.strerror}") from None


def _copy(template: Traversable, folder: Path, names: dict[str, str]) -> list[Path]:
    written = []
    for entry in sorted(template.iterdir(), key=lambda each: each.name):
        target = folder / names.get(entry.name, entry.name)
        if entry.is_dir() and entry.name != "__pycache__":
            target.mkdir()
            written += _copy(entry, target, names)
        elif entry.name.endswith(KINDS):
            text = entry.read_text(encoding="utf-8")
            for old, new in names.items():
                text = text.replace(old, new)
            target.write_text(text, encoding="utf-8")
            written.append(target)
    return written
