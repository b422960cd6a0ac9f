"""`cuda:N` - a thread worker with a GPU of its own: device, stream and share of memory; the CPU where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch

from byzflow.actors.host import Route
from byzflow.actors.thread import ThreadBackend
from byzflow.errors import ActorError


class CudaBackend(ThreadBackend):
    """Functions run with the GPU as torch's current device, on the worker's own stream, one after the other.

    Where torch sees no such GPU the worker runs on the CPU, says so once by a warning, and has the capability "cpu"
    instead of "gpu". A call begins when the GPU's default stream, where arguments are usually made, has done its work,
    and is over when its own stream has.
    """

    scheme = "cuda"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Of "cuda:0", with the option `share`, of the GPU's memory, in (0, 1]. "cuda:" is the first."""
        number = url.partition(":")[2] or "0"
        if not number.isdecimal() or options.keys() - {"share"}:
            raise ActorError(f"a GPU worker is 'cuda:N' with the option share, got {url!r} {options or ''}".rstrip())
        return cls(int(number), **options)

    def __init__(self, number: int = 0, share: float = 1.0) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ActorError(f"a GPU worker needs a share of memory in (0, 1], got {share:g}")
        self.number, self.share = number, share
        self.device = torch.device("cpu")

    async def start(self, name: str, route: Route | None = None) -> None:
        """Take the GPU, if it is there."""
        if self.number < torch.cuda.device_count():
            self.device = torch.device("cuda", self.number)
            torch.cuda.set_per_process_memory_fraction(self.share, self.device)
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self.around = partial(_run, self.device, stream)
            self.capabilities = frozenset({"gpu"})
        else:
            count = torch.cuda.device_count()
            warnings.warn(f"worker {name!r}: no GPU {self.number} among {count}; it runs on the CPU", stacklevel=2)
        await super().start(name, route)


def _run(device: torch.device, stream: torch.cuda.Stream, fn: Callable[[], Any]) -> Any:
    with torch.cuda.device(device), torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.default_stream(device))  # on which the arguments may still be in the making
        try:
            return fn()
        finally:
            stream.synchronize()  # after an error too: what the kernels read is given back now
