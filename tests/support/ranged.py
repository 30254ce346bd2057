"""A source without a network that serves ranges of a small model's files, and misbehaves on request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.sources.source import Held
from tests.support.gateway import SmallModel


class Ranged:
    """piece: how many bytes come at a time, each after one turn of the loop.

    wrong: leaves of which a byte is wrong, in ranges and as blocks. cut: a range ends with an error after so many
    bytes. silent: sends nothing, until its caller is cancelled. serves: whether it knows ranges at all. lacks_files:
    ranges of them are not found. has: by file the leaves it says it has, None: it cannot say. gate: while it is cleared
    nothing is sent.
    sent: bytes of ranges that were sent; ranges: how many were asked for; asked: blocks.
    """

    def __init__(self, model: SmallModel, name: str = "http://one.example", *, piece: int = 100) -> None:
        self.name = name
        self.kind = "peer"
        self.model = model
        self.piece = piece
        self.ranges = True
        self.wrong: set[Cid] = set()
        self.wrong_blocks = True
        self.cut: int | None = None
        self.silent = False
        self.serves = True
        self.lacks_files = False
        self.has: dict[Cid, int] | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.sent = 0
        self.asked_ranges: list[tuple[Cid, int, int]] = []
        self.asked: Counter[Cid] = Counter()
        self.open = 0
        self._data = {file.cid.canonical: (file, model.files[file.path]) for file in model.plan.files}

    async def read_block(self, cid: Cid) -> bytes:
        self.asked[cid] += 1
        await asyncio.sleep(0)
        block = self.model.blocks.get(cid)
        if block is None:
            raise self._fault("not_found", cid)
        if cid in self.wrong and self.wrong_blocks:
            return bytes([block[0] ^ 1]) + block[1:]
        return block

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        self.asked_ranges.append((file.cid, start, stop))
        self.arrived.set()
        self.open += 1
        try:
            await asyncio.sleep(0)
            if not self.serves:
                self.ranges = False
                raise self._fault("no_ranges", file.cid)
            if self.lacks_files:
                raise self._fault("not_found", file.cid)
            if self.silent:
                await asyncio.Event().wait()
            data = self._bytes(file)[start:stop]
            for at in range(0, len(data), self.piece):
                await self.gate.wait()
                if self.cut is not None and at >= self.cut:
                    raise self._fault("truncated", file.cid)
                self.sent += len(data[at : at + self.piece])
                yield data[at : at + self.piece]
                await asyncio.sleep(0)
        finally:
            self.open -= 1

    def _bytes(self, file: FilePlan) -> bytes:
        plan, data = self._data[file.cid.canonical]
        changed = bytearray(data)
        for leaf in plan.leaves:
            if leaf.cid in self.wrong:
                changed[leaf.offset] ^= 1
        return bytes(changed)

    def _fault(self, code: str, cid: Cid) -> SourceUnavailable:
        return SourceUnavailable(f"{self.name}: {code}", source=self.name, cid=cid, code=code)

    async def held(self, root: Cid) -> Held | None:
        await asyncio.sleep(0)
        if self.has is None:
            return None
        bitmaps = {
            cid: mask.to_bytes((len(self._data[cid.canonical][0].leaves) + 7) // 8, "little")
            for cid, mask in self.has.items()
        }
        return Held(complete=False, files=bitmaps)

    async def settled(self, cids: Sequence[Cid]) -> None:
        pass

    async def aclose(self) -> None:
        pass
