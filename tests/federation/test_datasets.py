"""Data sets by name; files are small ones in the real formats."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from byzflow.errors import DataError, SpecError
from byzflow.federation.datasets import load
from byzflow.federation.image_files import CIFAR, MNIST, RECORD


def idx(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def mnist_files(folder: Path, *, packed: bool = False, end: str = "-idx") -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in zip(MNIST, (7, 7, 3, 3), strict=True):
        arrays[name] = (
            rng.integers(0, 256, (n, 28, 28), np.uint8) if "images" in name else rng.integers(0, 10, n, np.uint8)
        )
        path = folder / (name.replace("-idx", end) + (".gz" if packed else ""))
        path.write_bytes(gzip.compress(idx(arrays[name])) if packed else idx(arrays[name]))
    return arrays


def cifar_files(folder: Path) -> list[np.ndarray]:  # type: ignore[type-arg]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parts = []
    for name in CIFAR:
        records = rng.integers(0, 256, (4, RECORD), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
        parts.append(records)
    return parts


def test_digits_are_the_package_s_and_depend_on_the_seed() -> None:
    split = load("digits", seed=3)
    assert split.train_x.shape == (1348, 64)
    assert split.test_x.shape == (449, 64)
    assert (split.classes, split.shape) == (10, (64,))
    assert (float(split.train_x.min()), float(split.train_x.max())) == (0.0, 1.0)
    assert torch.equal(load("digits", seed=3).train_x, split.train_x)
    assert not torch.equal(load("digits", seed=4).train_y, split.train_y)


def test_synthetic_takes_any_size_and_can_be_learned() -> None:
    split = load("synthetic", train=300, test=200, features=20, classes=3, spread=2.0, seed=1)
    assert split.train_x.shape == (300, 20)
    means = torch.stack([split.train_x[split.train_y == label].mean(0) for label in range(3)])
    nearest = torch.cdist(split.test_x, means).argmin(1)
    assert (nearest == split.test_y).float().mean() > 0.95
    tiny = load("synthetic", train=1, test=1, features=1, classes=1)
    assert tiny.train_x.shape == (1, 1)


@pytest.mark.parametrize("where", ["MNIST/raw", "mnist", "MNIST", "."])
@pytest.mark.parametrize(("packed", "end"), [(False, "-idx"), (True, "-idx"), (False, ".idx")])
def test_mnist_in_every_layout(tmp_path: Path, where: str, packed: bool, end: str) -> None:
    root = tmp_path / "data"
    arrays = mnist_files(root / where, packed=packed, end=end)
    split = load("mnist", root)
    assert split.train_x.shape == (7, 1, 28, 28)
    assert split.test_x.shape == (3, 1, 28, 28)
    assert split.train_x.dtype == torch.float32
    np.testing.assert_array_equal(split.train_x[:, 0].numpy() * 255, arrays[MNIST[0]].astype(np.float32))
    np.testing.assert_array_equal(split.test_y.numpy(), arrays[MNIST[3]])


def test_missing_mnist_names_files_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^mnist: no train-images-idx3-ubyte, .* in .*MNIST/raw: put [^\n]*$"):
        load("mnist", tmp_path)
    mnist_files(tmp_path / "MNIST/raw")
    (tmp_path / "MNIST/raw" / MNIST[3]).unlink()
    with pytest.raises(DataError, match=r"mnist: no t10k-labels-idx1-ubyte \(or .gz\)"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"\0\0\x08\x03\0\0", "no IDX file"),
        (b"\0\0\x0d\x03" + b"\0\0\0\x01" * 3 + b"x", "no IDX file of bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "1 to 268435456 are read"),  # would be 2^96 bytes
        (b"\0\0\x08\x03" + b"\0\0\0\0" * 3, "1 to 268435456 are read"),
        (b"\0\0\x08\x03" + b"\0\0\0\x07\0\0\0\x1c\0\0\0\x1c" + b"x" * 10, "holds 10: is it whole"),
        (b"\0\0\x08\x03" + b"\0\0\0\x01\0\0\0\x02\0\0\0\x02" + b"x" * 5, "holds more: is it whole"),
        (b"\0\0\x08\x03" + b"\0\0\0\x07\0\0\0\x02\0\0\0\x02" + b"x" * 28, "28 x 28 pixels"),
        (b"\0\0\x08\x03" + b"\0\0\0\x01\0\0\0\x1c\0\0\0\x1c" + b"x" * 784, "not as it should be"),  # 1 image, 7 labels
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_broken_mnist_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str, packed: bool) -> None:
    folder = tmp_path / "MNIST/raw"
    mnist_files(folder)
    (folder / MNIST[0]).unlink()
    (folder / (MNIST[0] + ".gz" * packed)).write_bytes(gzip.compress(content, mtime=0) if packed else content)
    with pytest.raises(DataError, match=message) as caught:
        load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(idx(np.zeros((7, 28, 28), np.uint8)), mtime=0)[:-12]], ids=["none", "cut"]
)
def test_a_broken_gzip_file_is_refused(tmp_path: Path, content: bytes) -> None:
    mnist_files(tmp_path / "mnist", packed=True)
    (tmp_path / "mnist" / (MNIST[0] + ".gz")).write_bytes(content)
    with pytest.raises(DataError, match="does not read"):
        load("mnist", tmp_path)


def test_cifar10_from_its_binary_version(tmp_path: Path) -> None:
    parts = cifar_files(tmp_path / "cifar-10-batches-bin")
    split = load("cifar-10", tmp_path)
    assert split.train_x.shape == (20, 3, 32, 32)
    assert split.test_x.shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(split.test_y.numpy(), parts[5][:, 0])
    np.testing.assert_array_equal(split.train_x[5].flatten().numpy() * 255, parts[1][1, 1:].astype(np.float32))


def test_cifar10_does_not_read_pickles(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"pickles, which can run code .* unpack cifar-10-binary.tar.gz"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"x" * 100, "100 bytes"), (b"", "0 bytes"), (b"\x0b" * RECORD, "label 11")]
)
def test_broken_cifar10_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    cifar_files(tmp_path)
    (tmp_path / CIFAR[2]).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnst", {}, "did you mean mnist"),
        ("synthetic", {"feature": 3}, "unknown option 'feature'; did you mean features"),
        ("mnist", {"root2": 3}, "unknown option"),
        ("synthetic", {"classes": 0}, "classes must be an int >= 1, got 0"),
        ("digits", {"test_share": 1.0}, "test_share must be between 0 and 1"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load(name, **options)
