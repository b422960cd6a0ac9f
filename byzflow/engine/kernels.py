"""The compiled passes: finds the library, calls it, and splits coordinates between threads.

The library is plain C called through ctypes, which releases the interpreter's lock. Where it is missing (no
compiler when byzflow was installed) or BYZFLOW_KERNELS=torch, the passes run on torch operations instead.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from byzflow.errors import ByzflowError
from byzflow.ranks import RankMean, network

CHOICE = "BYZFLOW_KERNELS"
LIBRARY = Path(__file__).with_name("_kernels.so")
LINE = 64  # bytes
BLOCK = 64  # coordinates of a tile of the C pass
RUN, PAD = 32, 7  # rows that it sorts at a time, and the most that it adds to fill such a run up
SPLIT = 1 << 15  # coordinates of 8 rows below which a second thread is not worth its start
MAX_POINTS = 4096  # of a Gram, and rows of a network: beyond it networks grow too long to build
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
SPARSE = 3  # a mixing with less than one weight in so many is done weight by weight
MIXED = 5  # rows of a dense mixing that the kernel makes at a time
R = TypeVar("R")


class _Program(ctypes.Structure):
    _fields_ = (
        ("mode", ctypes.c_int32),
        ("low", ctypes.c_int32),
        ("high", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("comparators", ctypes.c_int32),
        ("network", ctypes.c_void_p),
        ("factor", ctypes.c_double),
    )


_PASS = (
    ctypes.c_void_p,  # rows
    ctypes.c_int,  # n
    ctypes.c_ssize_t,  # d
    ctypes.c_void_p,  # weights
    ctypes.c_int,  # m
    ctypes.c_void_p,  # program
    ctypes.c_void_p,  # out
    ctypes.c_void_p,  # bad
    ctypes.c_void_p,  # tile
    ctypes.c_void_p,  # source
)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled passes, None where torch runs them. Raises ByzflowError if BYZFLOW_KERNELS=c and there are none."""
    choice = os.environ.get(CHOICE, "auto")
    if choice not in ("auto", "c", "torch"):
        raise ByzflowError(f"{CHOICE} must be auto, c or torch, got {choice!r}")
    if choice == "torch":
        return None
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        if choice == "c":
            raise ByzflowError(
                f"{CHOICE}=c, but the kernels do not load: {error}; install byzflow with a compiler"
            ) from None
        return None
    loaded.byzflow_cpu.restype = ctypes.c_char_p
    return loaded


def active() -> str:
    """One line for `byzflow doctor`: which path runs and why."""
    if os.environ.get(CHOICE) == "torch":
        return f"torch, because {CHOICE}=torch"
    found = library()
    if found is None:
        return "torch: no compiled kernels, install byzflow where there is a C compiler"
    return f"C, {found.byzflow_cpu().decode()}"


def _pointers(tensors: Sequence[Tensor], offset: int) -> ctypes.Array[ctypes.c_void_p]:
    shift = offset * tensors[0].element_size() if tensors else 0
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() + shift for tensor in tensors))


def _aligned(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Bytes that start with a cache line: vectors that lie across two lines are slow to store and load again."""
    room = np.empty(size + LINE, dtype=np.uint8)
    return room[-room.ctypes.data % LINE :][:size]


def run(
    lib: ctypes.CDLL,
    rows: Sequence[Tensor],
    weights: Tensor | None,
    rule: RankMean,
    out: Tensor,
) -> Tensor:
    """One pass over flat contiguous rows of one dtype: mix by `weights` (m, n), rank by `rule`, write to `out`.

    Returns (n,) bool of the rows with NaN or Inf.
    """
    n, d, dtype = len(rows), rows[0].numel(), rows[0].dtype
    m = n if weights is None else len(weights)
    mixing = None if weights is None else weights.contiguous()
    comparators = network(m, *rule.ranks(m), run=RUN)
    steps = (len(comparators), comparators.ctypes.data)
    program = _Program(rule.code, rule.low, rule.high, rule.count, *steps, rule.factor)
    function = getattr(lib, f"byzflow_pass_{SUFFIX[dtype]}")
    function.argtypes = _PASS
    room = (n + m + 2 * PAD) * BLOCK * dtype.itemsize  # of the tile; the pointers lie behind it

    def part(start: int, stop: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        bad = np.zeros(n, dtype=np.uint8)
        scratch = _aligned(room + (n + m + PAD) * ctypes.sizeof(ctypes.c_void_p))
        tile = scratch.ctypes.data
        function(
            _pointers(rows, start),
            n,
            stop - start,
            None if mixing is None else mixing.data_ptr(),
            m,
            ctypes.byref(program),
            out.data_ptr() + start * out.element_size(),
            bad.ctypes.data,
            tile,
            tile + room,
        )
        return bad

    return torch.from_numpy(np.bitwise_or.reduce(in_parts(part, d, BLOCK)).astype(bool))


def gram(lib: ctypes.CDLL, rows: Sequence[Tensor], judged: int) -> tuple[Tensor, Tensor]:
    """Inner products (n + 1, n + 1) of flat contiguous rows and the origin, and (judged,) bool of rows not finite."""
    n, d, dtype = len(rows), rows[0].numel(), rows[0].dtype
    p, q = n + 1, n // 4 * 4 + 4  # the kernel's blocks are 4 x 4
    columns = 256 if n < 256 else 64  # of a tile, which stays in the second cache
    span = max(columns, 1024 if n < 32 else 0)  # coordinates that share a reference
    function = getattr(lib, f"byzflow_gram_{SUFFIX[dtype]}")

    def part(start: int, stop: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        g, bad, tile = np.zeros((q, q)), np.zeros(n, dtype=np.uint8), _aligned((q + 1) * columns * 8)
        function(
            _pointers(rows, start),
            ctypes.c_int(n),
            ctypes.c_int(judged),
            ctypes.c_ssize_t(stop - start),
            g.ctypes.data_as(ctypes.c_void_p),
            bad.ctypes.data_as(ctypes.c_void_p),
            tile.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int(columns),
            ctypes.c_ssize_t(span),
        )
        return g, bad

    parts = in_parts(part, d, span, n)  # else the cut would change the references
    inner = np.sum([g for g, _ in parts], axis=0)[:p, :p]
    upper = np.triu(inner)
    bad = np.bitwise_or.reduce([b for _, b in parts])[:judged]
    return torch.from_numpy(upper + np.triu(inner, 1).T), torch.from_numpy(bad.astype(bool))


def combine(lib: ctypes.CDLL, rows: Sequence[Tensor], weights: Tensor, out: Sequence[Tensor]) -> bool:
    """Writes weights (m, n) @ rows to the m flat tensors of `out`; whether all of it is finite.

    Weights of 0 are skipped where that is worth it: otherwise a row that is not finite touches every answer.
    """
    n, d, dtype, m = len(rows), rows[0].numel(), rows[0].dtype, len(weights)
    plain, packed = weights.numpy(), None
    if m > 1 and np.count_nonzero(plain) * SPARSE > plain.size:
        packed = np.zeros((-(-m // MIXED) * MIXED, n))
        packed[:m] = plain
        packed = np.ascontiguousarray(packed.reshape(-1, MIXED, n).transpose(0, 2, 1))
    plain = np.ascontiguousarray(plain)
    function = getattr(lib, f"byzflow_combine_{SUFFIX[dtype]}")

    def part(start: int, stop: int) -> bool:
        tile = _aligned(0 if packed is None else n * 128 * 8)
        return not function(
            _pointers(rows, start),
            ctypes.c_int(n),
            ctypes.c_ssize_t(stop - start),
            plain.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_void_p(None) if packed is None else packed.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int(m),
            _pointers(out, start),
            tile.ctypes.data_as(ctypes.c_void_p),
        )

    return all(in_parts(part, d, BLOCK, n + m))


def norms(lib: ctypes.CDLL, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Squared norms (n,) of flat contiguous rows, and (n,) bool of those with NaN or Inf."""
    n, d, dtype = len(rows), rows[0].numel(), rows[0].dtype
    function = getattr(lib, f"byzflow_norms_{SUFFIX[dtype]}")

    def part(start: int, stop: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        squares, bad = np.zeros(n), np.zeros(n, dtype=np.uint8)
        function(
            _pointers(rows, start),
            ctypes.c_int(n),
            ctypes.c_ssize_t(stop - start),
            squares.ctypes.data_as(ctypes.c_void_p),
            bad.ctypes.data_as(ctypes.c_void_p),
        )
        return squares, bad

    parts = in_parts(part, d, BLOCK, n)
    bad = np.bitwise_or.reduce([b for _, b in parts]).astype(bool)
    return torch.from_numpy(np.sum([s for s, _ in parts], axis=0)), torch.from_numpy(bad)


_pool: tuple[int, ThreadPoolExecutor] | None = None
_starting = Lock()


def in_parts(work: Callable[[int, int], R], d: int, step: int, n: int = 8) -> list[R]:
    """Calls work(start, stop) on shares of d coordinates of n rows, multiples of `step`, one a thread of torch's."""
    global _pool
    threads = max(1, min(torch.get_num_threads(), n * d // (8 * SPLIT), d // step))
    if threads == 1:
        return [work(0, d)]
    with _starting:
        if _pool is None or _pool[0] != os.getpid():  # threads do not survive a fork
            _pool = (os.getpid(), ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="byzflow"))
    share = -(-d // threads)
    cuts = [min(d, -(-share * i // step) * step) for i in range(threads)] + [d]
    spans = [(a, b) for a, b in pairwise(cuts) if a < b]
    waiting = [_pool[1].submit(work, a, b) for a, b in spans[1:]]
    return [work(*spans[0]), *(future.result() for future in waiting)]
