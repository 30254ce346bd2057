"""Blocks that the local Kubo has, or brings over bitswap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import NodeError, SourceUnavailable, Unavailable
from ipfs_accelerate_node.sources.source import MAX_BLOCK_BYTES, Held

if TYPE_CHECKING:
    from ipfs_accelerate_node.kubo import KuboClient

log = logging.getLogger(__name__)


class KuboSource:
    """The client belongs to the Kubo service, which may replace its daemon at any time: a new fetch takes a new source.

    Blocks, 16 at a time, and no runs: between two daemons on loopback that brings 62–152 MB/s, `cat` of 16 MiB runs
    62–110 one after another, 64–127 two at a time, and with two or more it hung in 4 of 10 tries; a CAR brings 21–25.

    timeout_s: for one block. Bitswap has to find a provider in the DHT before the first byte of a root, so this is a
    multiple of what an HTTP server gets.
    """

    name = "kubo"
    kind = "kubo"
    ranges = False

    def __init__(self, client: KuboClient, *, timeout_s: float = 60.0) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def read_block(self, cid: Cid) -> bytes:
        """See `Source.read_block`. The block comes unpinned into Kubo's own store until `settled`."""
        try:
            block = await self._block(cid)
        except SourceUnavailable:
            raise
        except (Unavailable, TimeoutError) as exc:
            raise self._fault(cid, exc, "source_unavailable") from exc
        except NodeError as exc:
            raise self._fault(cid, exc, exc.code) from exc
        if len(block) > MAX_BLOCK_BYTES:
            raise self._fault(cid, f"{len(block)} bytes", "block_too_large")
        return block

    async def _block(self, cid: Cid) -> bytes:
        """A daemon of ours that refers to a file of ours which is gone or damaged forgets it and asks the network."""
        try:
            return await self._client.block_get(cid, timeout_s=self._timeout_s)
        except SourceUnavailable as exc:
            if exc.code != "kubo_error" or not self._client.managed or not await self._client.references([cid]):
                raise
            if await self._client.block_rm([cid]):
                raise
            log.warning("kubo.reference_dropped cid=%s reason=%s", cid, exc)
        return await self._client.block_get(cid, timeout_s=self._timeout_s)

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """Raises SourceUnavailable (no_ranges): bitswap carries blocks."""
        raise SourceUnavailable("kubo carries blocks only", source=self.name, cid=file.cid, code="no_ranges")
        yield b""

    async def held(self, root: Cid) -> Held | None:
        """None: only asking tells."""
        return None

    async def settled(self, cids: Sequence[Cid]) -> None:
        """Drops Kubo's copy of these leaves, so that one copy is on disk at a time. What another pin holds stays."""
        try:
            held = await self._client.block_rm(list(cids))
        except NodeError as exc:
            log.warning("kubo.settle_failed blocks=%d reason=%s", len(cids), exc)
            return
        if held:
            log.info("kubo.settle_held blocks=%d first=%s", len(held), held[0])

    async def aclose(self) -> None:
        """Nothing: the client belongs to the Kubo service."""

    def _fault(self, cid: Cid, reason: object, code: str) -> SourceUnavailable:
        return SourceUnavailable(f"kubo for {cid}: {reason}", source=self.name, cid=cid, code=code)


class LateKubo:
    """A Kubo that may not be ready yet: waited for when it is asked for its first block, and once only.

    ready: the client, as soon as there is one; raises Unavailable when that takes too long. timeout_s: as `KuboSource`.
    """

    name = KuboSource.name
    kind = KuboSource.kind
    ranges = False

    def __init__(self, ready: Callable[[], Awaitable[KuboClient]], *, timeout_s: float = 60.0) -> None:
        self._ready = ready
        self._timeout_s = timeout_s
        self._waiting = asyncio.Lock()
        self._source: KuboSource | None = None
        self._absent: Unavailable | None = None

    async def read_block(self, cid: Cid) -> bytes:
        """See `Source.read_block`; code kubo_unavailable when it did not become ready."""
        async with self._waiting:
            if self._source is None and self._absent is None:
                try:
                    self._source = KuboSource(await self._ready(), timeout_s=self._timeout_s)
                except Unavailable as exc:
                    self._absent = exc
        if self._source is None:
            raise SourceUnavailable(
                f"kubo for {cid}: {self._absent}", source=self.name, cid=cid, code="kubo_unavailable"
            ) from self._absent
        return await self._source.read_block(cid)

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """Raises SourceUnavailable (no_ranges): bitswap carries blocks."""
        raise SourceUnavailable("kubo carries blocks only", source=self.name, cid=file.cid, code="no_ranges")
        yield b""

    async def held(self, root: Cid) -> Held | None:
        """None: only asking tells."""
        return None

    async def settled(self, cids: Sequence[Cid]) -> None:
        """As `KuboSource.settled`."""
        if self._source is not None:
            await self._source.settled(cids)

    async def aclose(self) -> None:
        """Nothing: the client belongs to the Kubo service."""
