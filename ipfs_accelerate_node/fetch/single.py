"""Single blocks, read one after another: the directories on the way to a path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import IntegrityError, SourceUnavailable
from ipfs_accelerate_node.fetch.schedule import Schedule
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.source import Source


class BlockReader:
    """A context. sources: asked in this order, and stay their caller's. discover: of root; asked only if none of them
    has a block, and what it finds is closed here."""

    def __init__(
        self, root: Cid, sources: Sequence[Source], discover: Callable[[Cid], AsyncIterator[Source]] | None
    ) -> None:
        self._root = root
        self._sources = list(sources)
        self._discover = discover
        self._found: AsyncIterator[Source] | None = None
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    async def read(self, cid: Cid) -> bytes:
        """Verified. Raises as a fetch does when no source could give it."""
        try:
            return await single_block(cid, self._sources)
        except (SourceUnavailable, IntegrityError) as exc:
            failure = exc
        while (source := await self._further()) is not None:
            try:
                block = await single_block(cid, [source])
            except (SourceUnavailable, IntegrityError):
                continue
            self._sources.append(source)
            return block
        raise failure

    async def _further(self) -> Source | None:
        """The next one that is found."""
        if self._discover is None:
            return None
        if self._found is None:
            self._found = self._discover(self._root)
            if (close := getattr(self._found, "aclose", None)) is not None:
                self._exit.push_async_callback(close)
        known = {source.name for source in self._sources}
        async for source in self._found:
            self._exit.push_async_callback(source.aclose)
            if source.name not in known:
                return source
        return None


async def single_block(cid: Cid, sources: Sequence[Source]) -> bytes:
    """One verified block from the first source that has it. Raises as a fetch does when none could."""
    schedule = Schedule(sources)
    clock = asyncio.get_running_loop().time
    while True:
        asked = False
        for standing in list(schedule.ready(clock())):
            if cid in standing.lacks:
                continue
            asked = True
            standing.requests += 1
            try:
                block = await standing.source.read_block(cid)
                await in_thread(cid.check, block, standing.source.name)
                return block
            except IntegrityError as exc:
                schedule.rejected(standing, exc)
            except SourceUnavailable as exc:
                schedule.failed(standing, cid, exc, clock())
        if asked:
            continue
        rest_until = schedule.rests_until(clock())
        if rest_until is None:
            raise schedule.verdict(cid)
        await asyncio.sleep(max(0.0, rest_until - clock()))
