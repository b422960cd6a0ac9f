"""Reads the golden vectors: inputs and expected outputs computed by brute force, outside this tree."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(os.environ.get("BYZFLOW_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
PRESENT = (FOLDER / "cases.json").exists()
DEVICE = os.environ.get("BYZFLOW_TEST_DEVICE", "cpu")  # "cuda" takes every case through the GPU's path
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


@cache
def cases() -> list[dict[str, Any]]:
    """All cases, or none where the vectors are not beside this checkout."""
    return json.loads((FOLDER / "cases.json").read_text())["cases"] if PRESENT else []


@cache
def _arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "cases.npz") as data:
        return dict(data)


def rows(case: dict[str, Any]) -> Tensor:
    """The (n, d) input, in the dtype of the case."""
    return torch.from_numpy(_arrays()[case["x"]]).to(DEVICE, DTYPES[case["dtype"]])


def extras(case: dict[str, Any]) -> dict[str, Tensor]:
    """The extra arrays, by the names that calls take."""
    return {name: torch.from_numpy(_arrays()[key]).to(DEVICE) for name, key in case.get("extras", {}).items()}


def differs(case: dict[str, Any], got: Tensor) -> str:
    """'' if `got` agrees with an accepted answer within the tolerance of the case, else by how much not."""
    errors = []
    for key in [case["expected"], *case.get("alternatives", [])]:
        expected = np.atleast_2d(_arrays()[key].astype(np.float64))
        actual = np.atleast_2d(got.double().cpu().numpy())
        if actual.shape != expected.shape:
            errors.append(f"shape {actual.shape}, expected {expected.shape}")
            continue
        finite = np.isfinite(expected)
        if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
            errors.append("other non-finite entries")
            continue
        gap = np.linalg.norm(np.where(finite, actual, 0) - np.where(finite, expected, 0), axis=1)
        bound = case["rtol"] * case["scale"] + case["eps_out"] * np.linalg.norm(np.where(finite, expected, 0), axis=1)
        if (gap <= bound).all():
            return ""
        errors.append(f"error {gap.max():.3g}, allowed {bound[gap.argmax()]:.3g}")
    return "; ".join(errors)
