"""Versions of what nodes publish: the latest or by number, read as often as one likes, in bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from byzflow.errors import FederationError, MessageTimeout
from byzflow.federation.message import snapshot
from byzflow.gossip.effects import NodeId


@dataclass(frozen=True, eq=False)
class Version:
    """What a node published as its `number`-th version, from 1."""

    id: NodeId
    number: int
    values: Mapping[str, Any]


class VersionStore:
    """The last `keep` versions of each node. Belongs to one event loop.

    Tensors, in mappings such as state dicts too, are stored by the SHA-256 of their content, dtype and shape, each
    content once, whoever publishes it how often; what is read is a copy. Of other values a copy is kept.
    """

    def __init__(self, keep: int = 4) -> None:
        """Raises FederationError for a `keep` below 1."""
        if keep < 1:
            raise FederationError(f"keep must be an int >= 1, got {keep!r}")
        self._keep = keep
        self._versions: dict[NodeId, deque[Version]] = {}
        self._tensors: dict[str, Tensor] = {}
        self._uses: Counter[str] = Counter()
        self._changed = asyncio.Event()

    def update_version(self, id: NodeId, **values: Any) -> int:
        """Publish; the number of the version."""
        stored = {name: self._put(each) for name, each in values.items()}
        kept = self._versions.setdefault(id, deque())
        number = kept[-1].number + 1 if kept else 1
        kept.append(Version(id, number, stored))
        if len(kept) > self._keep:
            for each in kept.popleft().values.values():
                self._drop(each)
        self._changed.set()
        self._changed = asyncio.Event()
        return number

    def number(self, id: NodeId) -> int:
        """The number of a node's latest version; 0 if it has none."""
        return self._versions[id][-1].number if id in self._versions else 0

    def is_latest(self, id: NodeId, **values: Tensor) -> bool:
        """If a node's latest version has these very tensors."""
        latest = self._versions[id][-1].values if id in self._versions else {}
        return all(latest.get(name) == _Stored(_digest(each)) for name, each in values.items())

    def latest(self, id: NodeId, number: int | None = None) -> dict[str, Any] | None:
        """The values of a node's latest version, or of that of a number; None while it has none.

        Raises FederationError for a number that is not kept.
        """
        return self._values(self._find(id, number)) if id in self._versions else None

    async def pull_version(
        self, ids: Sequence[NodeId], timeout: float | None = None, number: int | None = None
    ) -> list[dict[str, Any]]:
        """The values of these nodes in this order: the latest ones, or those of one number. Nothing is used up.

        Waits for who has not published so much yet; after `timeout` seconds raises MessageTimeout with their ids.
        Raises FederationError for a number that is no longer kept.
        """
        needed = 1 if number is None else number
        try:
            async with asyncio.timeout(timeout):
                while late := [id for id in ids if self.number(id) < needed]:
                    await self._changed.wait()
        except TimeoutError:
            names = ", ".join(map(str, late))
            raise MessageTimeout(
                f"no version {number or ''} of {names} within {timeout:g} s".replace("  ", " ")
            ) from None
        return [self._values(self._find(id, number)) for id in ids]

    async def subscribe(self, ids: Sequence[NodeId] | None = None) -> AsyncIterator[Version]:
        """Each new version of these nodes, or of all, from now on, without end.

        Who reads slowly misses versions that are no longer kept, and never holds up who publishes.
        """
        seen = {id: self.number(id) for id in self._versions}
        while True:
            changed = self._changed
            fresh = [
                version
                for id in (self._versions if ids is None else ids)
                for version in self._versions.get(id, ())
                if version.number > seen.get(id, 0)
            ]
            for version in fresh:
                if self._versions[version.id][0].number <= version.number:  # still kept
                    yield Version(version.id, version.number, self._values(version))
                seen[version.id] = version.number
            if not fresh:
                await changed.wait()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors that are stored."""
        return sum(each.numel() * each.element_size() for each in self._tensors.values())

    def _find(self, id: NodeId, number: int | None) -> Version:
        kept = self._versions[id]
        if number is None:
            return kept[-1]
        if not kept[0].number <= number <= kept[-1].number:
            raise FederationError(f"version {number} of {id} is gone: {kept[0].number} to {kept[-1].number} are kept")
        return kept[number - kept[0].number]

    def _values(self, version: Version) -> dict[str, Any]:
        return {name: self._get(each) for name, each in version.values.items()}

    def _get(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._get(each) for name, each in value.items()}
        return self._tensors[value.digest].clone() if isinstance(value, _Stored) else value

    def _put(self, value: Any) -> Any:
        """Store a tensor, and those in mappings, or find that they are."""
        if isinstance(value, Mapping):
            return {name: self._put(each) for name, each in value.items()}
        if not isinstance(value, Tensor):
            return snapshot(value)
        digest = _digest(value)
        if digest not in self._tensors:
            self._tensors[digest] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        self._uses[digest] += 1
        return _Stored(digest)

    def _drop(self, value: Any) -> None:
        if isinstance(value, Mapping):
            for each in value.values():
                self._drop(each)
        if isinstance(value, _Stored):
            self._uses[value.digest] -= 1
            if not self._uses[value.digest]:
                del self._uses[value.digest], self._tensors[value.digest]


@dataclass(frozen=True)
class _Stored:
    """Stands for a tensor."""

    digest: str


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous()
    total = hashlib.sha256(f"{content.dtype}\0{tuple(content.shape)}\0".encode())
    total.update(content.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
