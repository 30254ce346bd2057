"""Blocks, and runs of leaves, from a trustless HTTP gateway.

Source: IPFS trustless gateway specification. Blocks are asked for as ``?format=raw``. A run of leaves is a plain range
where the gateway serves files, else a CAR of just these leaves, else block by block; which of these it can is seen at
the first request that needs it and remembered.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.sources import answers, car_ranges
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import FIRST_BYTE_S, STALL_S, Asked, GuardedSession, Pace
from ipfs_accelerate_node.sources.source import MAX_BLOCK_BYTES, Abilities, Held


class GatewaySource:
    """One server, with a session of its own: what is configured for one is not granted to a redirect of another.

    url: as configured; raises InvalidConfig (G10). tls: None for the system's certificates. abilities: what is known
    from before.
    """

    kind = "gateway"

    def __init__(
        self,
        url: str,
        *,
        first_byte_timeout_s: float = FIRST_BYTE_S,
        stall_timeout_s: float = STALL_S,
        tls: ssl.SSLContext | None = None,
        abilities: Abilities | None = None,
    ) -> None:
        self._origin = Origin.parse(url)
        pace = Pace(first_byte_s=first_byte_timeout_s, stall_s=stall_timeout_s)
        self._session = GuardedSession([self._origin], pace=pace, tls=tls)
        self.name = str(self._origin)
        self.abilities = abilities or Abilities()  # what was seen so far

    async def read_block(self, cid: Cid) -> bytes:
        """See `Source.read_block`. Asks by the canonical CID: the bytes are the same under every spelling."""
        asked = Asked(self.name, cid)
        url = self._origin.url(f"/ipfs/{cid.canonical}", "format=raw")
        async with self._session.request("GET", url, asked, {"Accept": answers.RAW_TYPE}) as reply:
            return await answers.block(reply, asked, MAX_BLOCK_BYTES)

    @property
    def ranges(self) -> bool:
        return self.abilities.ranges is not False or self.abilities.cars is not False

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """See `Source.read_range`. Raises IntegrityError too: blocks of a CAR are hashed on their way."""
        if stop <= start:
            return
        for way, ask in (("ranges", self._plain), ("cars", self._car)):
            if getattr(self.abilities, way) is False:
                continue
            try:
                async with aclosing(ask(file, start, stop)) as pieces:
                    async for piece in pieces:
                        self._saw(way, True)
                        yield piece
                return
            except SourceUnavailable as exc:
                if exc.code != "no_ranges":
                    raise
                self._saw(way, False)
        raise Asked(self.name, file.cid).fault("serves neither ranges nor CARs of them", "no_ranges")

    def _saw(self, way: str, can: bool) -> None:
        if getattr(self.abilities, way) is not can:
            self.abilities = replace(self.abilities, **{way: can})

    async def _plain(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        asked, headers = Asked(self.name, file.cid), answers.range_header(start, stop)
        url = self._origin.url(f"/ipfs/{file.cid.canonical}")
        async with self._session.request("GET", url, asked, headers) as reply:
            async with aclosing(answers.span(reply, asked, start, stop, file.size)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _car(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        asked = Asked(self.name, file.cid)
        url = self._origin.url(f"/ipfs/{file.cid.canonical}", car_ranges.query(start, stop))
        async with self._session.request("GET", url, asked, {"Accept": car_ranges.ACCEPT}) as reply:
            async with aclosing(car_ranges.span(reply, asked, file, start, stop)) as pieces:
                async for piece in pieces:
                    yield piece

    async def cached(self, cid: Cid) -> bool | None:
        """Whether it has this block at hand, so that asking does not send it searching; None if it does not say.
        Raises SourceUnavailable."""
        asked = Asked(self.name, cid)
        url = self._origin.url(f"/ipfs/{cid.canonical}", "format=raw")
        headers = {"Accept": answers.RAW_TYPE, "Cache-Control": "only-if-cached"}
        async with self._session.request("HEAD", url, asked, headers) as reply:
            return {200: True, 412: False, 404: False}.get(reply.status)

    async def held(self, root: Cid) -> Held | None:
        """None: it cannot say."""
        return None

    async def settled(self, cids: Sequence[Cid]) -> None:
        """Nothing: a gateway keeps what it likes."""

    async def aclose(self) -> None:
        await self._session.aclose()
