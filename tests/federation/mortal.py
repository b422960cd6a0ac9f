"""A small learner that can be told when to die, and of which every bit of state can be seen."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byzflow.federation.nodes import HonestNode


class Mortal(HonestNode):
    """Pulls to a target of its own, by data that depends on how far it has read, with momentum.

    `deaths` are moments "method:count", such as "apply_server_gradient:2" for its second call, at which the process is
    killed, each once for all processes that see `folder`; "hang" instead of a kill if `hangs`.
    """

    def __init__(
        self, id: int = 0, folder: str = "", deaths: tuple[str, ...] = (), hangs: bool = False, d: int = 4
    ) -> None:
        self.target = torch.arange(d, dtype=torch.float64) * (id + 1)
        self.x, self.velocity = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        self.position = 0
        self.id, self.folder, self.deaths, self.hangs = id, folder, deaths, hangs
        self.calls: dict[str, int] = {}

    def fate(self, method: str) -> None:
        self.calls[method] = self.calls.get(method, 0) + 1
        moment = f"{method}:{self.calls[method]}"
        if moment not in self.deaths:
            return
        try:
            (Path(self.folder) / f"{self.id}-{moment}").touch(exist_ok=False)
        except FileExistsError:
            return
        if self.hangs:
            time.sleep(3600)
        os.kill(os.getpid(), signal.SIGKILL)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        self.position += 1
        return torch.tensor(float(self.position)), torch.zeros(1)

    def honest_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        self.fate("honest_gradient")
        return self.x - self.target + torch.sin(x.to(torch.float64) * (self.id + 1))

    def apply_server_gradient(self, gradient: Tensor) -> None:
        self.fate("apply_server_gradient")
        self.velocity = 0.9 * self.velocity + gradient
        self.x = self.x - 0.1 * self.velocity

    lr = 0.1

    def get_parameters(self) -> Tensor:
        return self.x.clone()

    def set_parameters(self, vector: Tensor) -> None:
        self.fate("set_parameters")
        self.x = vector.clone()

    def evaluate(self) -> dict[str, float]:
        self.fate("evaluate")
        return {"x": float(self.x.sum())}

    def digest(self) -> str:
        self.fate("digest")
        return str(self.x.tolist())

    def state(self) -> dict[str, Any]:
        self.fate("state")
        return {"vector": self.x.clone(), "velocity": self.velocity.clone(), "position": self.position}

    def load_state(self, state: dict[str, Any]) -> None:
        self.x, self.velocity, self.position = state["vector"].clone(), state["velocity"].clone(), state["position"]

    def pid(self) -> int:
        return os.getpid()

    async def linger(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def children() -> set[int]:
    """The processes that this one started and that are not yet gone."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that just ended
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
