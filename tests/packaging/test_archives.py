"""The wheel and the source archive hold what they should, and nothing else."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from tests.packaging.stranger import ROOT, run

PACKAGES = {
    "byzflow",
    "byzflow_aggregators",
    "byzflow_preaggregators",
    "byzflow_attacks",
    "byzflow_gossip",
    "byzflow_ray",
    "byzflow_flower",
    "byzflow_lightning",
}


def wheel_of(root: Path, folder: Path) -> Path:
    (path,) = WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"])
    return Path(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_packages_stand_under_their_import_names(files: set[str]) -> None:
    top = {name.split("/")[0] for name in files}
    assert top >= PACKAGES
    assert all(name == "byzflow" or name.startswith("byzflow_") for name in top), top


def test_every_source_file_is_in_the_wheel_and_typed(files: set[str]) -> None:
    homes = (ROOT / "byzflow", *(ROOT / "plugins").iterdir(), *(ROOT / "strategies").iterdir())
    packages = [home for home in homes if (home / "__init__.py").exists()]
    expected = {
        f"{package.name}/{file.relative_to(package).as_posix()}"
        for package in packages
        for file in package.rglob("*.py")
    }
    assert {name for name in files if name.endswith(".py")} == expected
    assert {name.split("/")[0] for name in files if name.endswith("/py.typed")} == {p.name for p in packages}


def test_entry_points_name_things_that_are_there(wheel: Path, files: set[str]) -> None:
    archive = zipfile.ZipFile(wheel)
    (listing,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
    points = ConfigParser(delimiters="=")
    points.read_string(archive.read(listing).decode())
    assert points["console_scripts"]["byzflow"] == "byzflow.cli:main"
    assert set(points["byzflow"]) >= {"byzflow_aggregators", "byzflow_preaggregators", "byzflow_attacks"}
    assert set(points["byzflow.commands"]) >= {"list", "show", "doctor", "demo"}
    for group in points.sections():
        for target in points[group].values():
            module = target.partition(":")[0].replace(".", "/")
            assert {f"{module}.py", f"{module}/__init__.py"} & files, target


def test_the_unpacked_wheel_works(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = "import byzflow, torch; print(byzflow.__file__, byzflow.aggregate('median', torch.ones(3, 2)).tolist())"
    done = run(sys.executable, "-c", script, path=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'byzflow' / '__init__.py'} [1.0, 1.0]\n"), done.stderr


def test_a_wheel_built_from_the_source_archive_is_the_same(files: set[str], tmp_path: Path) -> None:
    (archive,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path / "sdist"), versions=["standard"])
    with tarfile.open(archive) as source:
        source.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.glob("byzflow-*")
    for name in ("Makefile", "constraints.txt", "README.md", "LICENSE", "docs/conf.py", "tests/docs/test_readme.py"):
        assert (folder / name).exists(), name
    again = zipfile.ZipFile(wheel_of(folder, tmp_path / "again")).namelist()
    assert {name for name in again if ".dist-info/" not in name} == files
