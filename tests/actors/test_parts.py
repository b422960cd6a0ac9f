"""Workers that lie about the tiles that they hold are refused by name, and everybody else goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from torch import Tensor

from byzflow.actors import ActorPool, ActorPoolConfig
from byzflow.actors import tiles as tiles_module
from byzflow.actors.tcp import ActorServer
from byzflow.actors.tiles import hold
from byzflow.errors import ActorError
from tests.actors.test_tiles import Made


class Liar(Made):
    """Sends what no tile would: `lies` are applied to what it says of its shape, its sums, and its result."""

    def __init__(self, n: int, d: int, start: int, stop: int, lie: str) -> None:
        super().__init__(n, d, start, stop)
        self.lie = lie

    def shape(self) -> list[Any]:
        n, leaves = super().shape()
        return SHAPES[self.lie](n, leaves) if self.lie in SHAPES else [n, leaves]

    async def turn(self, total: Tensor | None) -> Any:
        if self.lie == "endless sums":
            return torch.zeros(1, dtype=torch.float64)
        part = await super().turn(total)
        return part if part is None or self.lie not in SUMS else SUMS[self.lie](part)

    async def run(self, *arguments: Any) -> Any:
        part = await super().run(*arguments)
        return RESULTS[self.lie](part) if self.lie in RESULTS else part


SHAPES: dict[str, Any] = {
    "a leaf that is no list": lambda n, leaves: [n, [5]],
    "a leaf of words": lambda n, leaves: [n, [["long", "float32"]]],
    "a dtype that is a list": lambda n, leaves: [n, [[5, ["float32"]]]],
    "no rows": lambda n, leaves: [0, leaves],
    "no shape": lambda n, leaves: None,
}
SUMS: dict[str, Any] = {
    "NaN in a sum": lambda part: part.index_fill(0, torch.tensor([3]), torch.nan),
    "Inf in a sum": lambda part: part.index_fill(0, torch.tensor([0]), -torch.inf),
    "a sum of float32": lambda part: part.float(),
    "a sum of another shape": lambda part: part[:3],
    "a sum with a gradient": lambda part: part.index_fill(0, torch.tensor([3]), torch.nan).requires_grad_(),
    "words for a sum": lambda part: "no",
}
RESULTS: dict[str, Any] = {
    "no result": lambda part: None,
    "a result that lacks a part": lambda part: {name: part[name] for name in part if name != "rejected"},
    "values of another dtype": lambda part: part | {"value": [leaf.double() for leaf in part["value"]]},
    "values of another shape": lambda part: part | {"value": [leaf[:, 1:] for leaf in part["value"]]},
    "values that are none": lambda part: part | {"value": [None]},
    "numbers for values": lambda part: part | {"value": 5},
    "no values": lambda part: part | {"value": []},
    "a hundred answers": lambda part: part | {"value": [leaf.repeat(100, 1) for leaf in part["value"]]},
    "other rejected rows": lambda part: part | {"rejected": [1]},
    "rejected rows that are none": lambda part: part | {"rejected": ["all"]},
    "weights that are not finite": lambda part: part | {"weights": torch.full((9,), torch.nan).double()},
    "other weights": lambda part: part | {"weights": torch.ones(9).double()},
    "a state of its own": lambda part: part | {"state": {"surprise": 1}},
    "vectors of its own": lambda part: part | {"vectors": {"momenta": [True, [1] * 9, []]}},
    "another rule": lambda part: part | {"operator": "mean"},
}


@pytest.mark.parametrize("liar", [0, 1, 2])
def test_what_a_worker_lies_about_is_refused_in_its_name(liar: int) -> None:
    async def main() -> None:
        allow = {f"{each.__module__}:{each.__name__}": each for each in (Made, Liar)}
        async with (
            asyncio.timeout(100),
            ActorServer("tcp://127.0.0.1:0", allow=allow) as server,
            ActorPool([ActorPoolConfig(server.url, 3)]) as pool,
        ):
            for lie in [*SHAPES, *SUMS, *RESULTS]:
                tiles = {f"tcp-{k}": (9, 30, 10 * k, 10 * k + 10, lie if k == liar else "") for k in range(3)}
                with pytest.raises(ActorError) as caught:
                    async with await hold(pool, tiles, Liar) as held:
                        await held.explain("krum(f=2)")
                said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
                assert f"'tcp-{liar}'" in said, (lie, said)
                assert "\n" not in said
            async with await hold(pool, tiles | {f"tcp-{liar}": (9, 30, 0, 10, "")}, Liar) as held:
                await held.explain("krum(f=2)")  # and the pool is whole

    asyncio.run(main())


def test_a_worker_alone_that_sends_no_sum_is_named() -> None:
    async def main() -> None:
        async with asyncio.timeout(10), ActorPool([ActorPoolConfig("thread:", 1)]) as pool:
            held = await hold(pool, {"thread-0": (9, 30, 0, 30, "words for a sum")}, Liar)
            with pytest.raises(ActorError, match="worker 'thread-0' sent no part of this sum: 'no'"):
                await held.aggregate("krum(f=2)")

    asyncio.run(main())


def test_one_worker_alone_cannot_have_sums_added_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "TURNS", 50)

    async def main() -> None:
        async with asyncio.timeout(10), ActorPool([ActorPoolConfig("thread:", 1)]) as pool:
            held = await hold(pool, {"thread-0": (9, 30, 0, 30, "endless sums")}, Liar)
            with pytest.raises(ActorError, match=r"\['thread-0'\] ask for more than 50 sums"):
                await held.aggregate("krum(f=2)")

    asyncio.run(main())
