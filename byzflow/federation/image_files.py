"""The files of MNIST (IDX) and CIFAR-10 (binary version): headers and sizes are checked before they are believed."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from byzflow.errors import DataError

Images = tuple[Tensor, Tensor, Tensor, Tensor]
"""train_x, train_y, test_x, test_y."""
MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MNIST_FOLDERS = ("MNIST/raw", "mnist", "MNIST", ".")  # torchvision's first
FASHION_FOLDERS = ("FashionMNIST/raw", "fashion_mnist", "FashionMNIST", ".")
CIFAR = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
RECORD = 1 + 3 * 32 * 32  # a label and an image
LARGEST = 1 << 28  # bytes of one unpacked file, five times MNIST's largest


def read_mnist(root: Path, folders: Sequence[str] = MNIST_FOLDERS) -> Images:
    """Images (n, 1, 28, 28) in [0, 1] and labels (n,), from the first of the folders below `root` that has them.

    DataError names what is missing, and where it was looked for.
    """
    places = [root / each for each in folders]
    folder = next((each for each in places if _idx_file(each, MNIST[0])), places[0])
    paths = [_idx_file(folder, name) for name in MNIST]
    if missing := [name for name, path in zip(MNIST, paths, strict=True) if path is None]:
        raise DataError(
            f"mnist: no {', '.join(missing)} (or .gz) in {folder}: put MNIST's four files there, nothing is downloaded"
        )
    arrays = [_read_idx(path, 3 - i % 2 * 2) for i, path in enumerate(paths) if path is not None]
    for images, labels, name in ((arrays[0], arrays[1], MNIST[0]), (arrays[2], arrays[3], MNIST[2])):
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or (labels > 9).any():
            raise DataError(
                f"mnist: {name} in {folder} is not as it should be: images {images.shape}, labels {labels.shape}, "
                "28 x 28 pixels and labels 0 to 9 are expected"
            )
    return (_pixels(arrays[0][:, None]), _labels(arrays[1]), _pixels(arrays[2][:, None]), _labels(arrays[3]))


def read_cifar10(root: Path) -> Images:
    """Images (n, 3, 32, 32) in [0, 1] and labels (n,). The version of Python pickles is refused: they run code."""
    folders = [root / "cifar-10-batches-bin", root]
    folder = next((each for each in folders if (each / CIFAR[0]).is_file()), folders[0])
    if missing := [name for name in CIFAR if not (folder / name).is_file()]:
        pickles = (root / "cifar-10-batches-py").is_dir()
        why = " (cifar-10-batches-py holds pickles, which can run code and are not read)" if pickles else ""
        raise DataError(
            f"cifar10: no {', '.join(missing)} in {folder}{why}: unpack cifar-10-binary.tar.gz, nothing is downloaded"
        )
    parts = [_read_records(folder / name) for name in CIFAR]
    train = np.concatenate(parts[:-1])
    return (*_records(train), *_records(parts[-1]))


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file of this name, also as `train-images.idx3-ubyte`, plain before gzipped."""
    names = (name, name.replace("-idx", ".idx"))
    return next((folder / f"{n}{end}" for end in ("", ".gz") for n in names if (folder / f"{n}{end}").is_file()), None)


def _read_idx(path: Path, dims: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Bytes of `dims` dimensions: 0, 0, 8 (unsigned bytes), dims; each size in 4 bytes, the largest digit first."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dims)
            shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4))
            if len(header) < 4 + 4 * dims or header[:4] != bytes([0, 0, 8, dims]):
                raise DataError(f"mnist: {path} is no IDX file of bytes in {dims} dimensions")
            size = math.prod(shape)
            if not 0 < size <= LARGEST:
                raise DataError(f"mnist: {path} says that it holds {shape} bytes; 1 to {LARGEST} are read")
            body = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"mnist: {path} does not read: {error}") from None
    if len(body) != size:
        more = "more" if len(body) > size else str(len(body))
        raise DataError(f"mnist: {path} should hold {size} bytes after its header, and holds {more}: is it whole?")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _read_records(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    size = path.stat().st_size
    if size % RECORD or not 0 < size <= LARGEST:
        raise DataError(f"cifar10: {path} has {size} bytes, which is no whole number of images of {RECORD} bytes")
    records = np.fromfile(path, np.uint8).reshape(-1, RECORD)
    if (records[:, 0] > 9).any():
        raise DataError(f"cifar10: {path} has the label {records[:, 0].max()}, labels are 0 to 9")
    return records


def _records(records: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[Tensor, Tensor]:
    return _pixels(records[:, 1:].reshape(-1, 3, 32, 32)), _labels(records[:, 0])


def _pixels(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.divide(images, np.float32(255), dtype=np.float32))


def _labels(labels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))
