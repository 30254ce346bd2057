"""Blocks from a trustless HTTP gateway.

Source: IPFS trustless gateway specification, "block responses" (`?format=raw`, application/vnd.ipld.raw).
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Sequence

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.sources import answers
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import FIRST_BYTE_S, STALL_S, Asked, GuardedSession, Pace
from ipfs_accelerate_node.sources.source import MAX_BLOCK_BYTES, Held


class GatewaySource:
    """One server, with a session of its own: what is configured for one is not granted to a redirect of another.

    url: as configured; raises InvalidConfig (G10). tls: None for the system's certificates.
    """

    kind = "gateway"

    def __init__(
        self,
        url: str,
        *,
        first_byte_timeout_s: float = FIRST_BYTE_S,
        stall_timeout_s: float = STALL_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._origin = Origin.parse(url)
        pace = Pace(first_byte_s=first_byte_timeout_s, stall_s=stall_timeout_s)
        self._session = GuardedSession([self._origin], pace=pace, tls=tls)
        self.name = str(self._origin)

    async def read_block(self, cid: Cid) -> bytes:
        """See `Source.read_block`. Asks by the canonical CID: the bytes are the same under every spelling."""
        asked = Asked(self.name, cid)
        url = self._origin.url(f"/ipfs/{cid.canonical}", "format=raw")
        async with self._session.request("GET", url, asked, {"Accept": answers.RAW_TYPE}) as reply:
            return await answers.block(reply, asked, MAX_BLOCK_BYTES)

    ranges = False

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """See `Source.read_range`."""
        raise Asked(self.name, file.cid).fault("is only asked for blocks", "no_ranges")
        yield b""

    async def held(self, root: Cid) -> Held | None:
        """None: it cannot say."""
        return None

    async def settled(self, cids: Sequence[Cid]) -> None:
        """Nothing: a gateway keeps what it likes."""

    async def aclose(self) -> None:
        await self._session.aclose()
