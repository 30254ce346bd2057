"""Makes what was written durable while more is being written, in steps of SYNC_BYTES.

Owns the count of bytes that are not durable yet: beyond MAX_UNSYNCED_BYTES writers wait, so that a disk that is slower
than the network is felt there and not in the machine's memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.landing import Landing
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.source import Source

SYNC_BYTES = 64 << 20  # also what a source keeps for us meanwhile, at least
MAX_UNSYNCED_BYTES = 512 << 20


class Durability:
    """Of one fetch. `run` goes on until it is cancelled."""

    def __init__(self, landing: Landing, on_error: Callable[[NodeError], None]) -> None:
        self._landing = landing
        self._on_error = on_error
        self._unsynced = 0
        self._syncing = 0
        self._enough = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._brought: dict[Cid, Source] = {}  # leaves from a source that are not durable yet

    def brought(self, leaf: Cid, source: Source) -> None:
        """A leaf that is about to be written: its source is told when it is durable."""
        self._brought[leaf] = source

    def written(self, size_bytes: int) -> None:
        self._unsynced += size_bytes
        if self._unsynced >= SYNC_BYTES:
            self._enough.set()
        if self._unsynced + self._syncing >= MAX_UNSYNCED_BYTES:
            self._room.clear()

    async def room(self) -> None:
        """Waits until more may be written."""
        await self._room.wait()

    async def run(self) -> None:
        while True:
            await self._enough.wait()
            self._enough.clear()
            self._syncing, self._unsynced = self._unsynced, 0
            try:
                await in_thread(self._landing.sync)
                await self.settle()
            except NodeError as exc:
                self._on_error(exc)
                return
            finally:
                self._syncing = 0
                self._room.set()

    async def settle(self) -> None:
        """Tells each source which of its blocks it need not keep for us any longer."""
        settled: dict[str, tuple[Source, list[Cid]]] = {}
        for leaf in self._landing.durable():
            if (source := self._brought.pop(leaf.cid, None)) is not None:
                settled.setdefault(source.name, (source, []))[1].append(leaf.cid)
        for source, cids in settled.values():
            await source.settled(cids)
