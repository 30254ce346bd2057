"""Blocks from a trustless HTTP gateway, or from another node, which serves the same route.

Source: IPFS trustless gateway specification, "block responses" (`?format=raw`, application/vnd.ipld.raw).
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import AuthRequired, SourceUnavailable
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import FIRST_BYTE_S, STALL_S, Asked, GuardedSession, Pace, Reply, retry_after_s
from ipfs_accelerate_node.sources.source import MAX_BLOCK_BYTES, Held

_RAW = "application/vnd.ipld.raw"
# What a block may call itself: a plain file server knows no better than octet-stream. The hash decides anyway; the type
# only tells an error page from a block before it is read.
_TYPES_OF_BLOCKS = frozenset({_RAW, "application/octet-stream", ""})

_LACKS = {404: "not_found", 410: "not_found", 412: "not_found", 451: "blocked"}
_BUSY = frozenset({429, 503, 504})


class GatewaySource:
    """One server, with a session of its own: what is configured for one is not granted to a redirect of another.

    url: as configured; raises InvalidConfig (G10). tls: None for the system's certificates.
    """

    def __init__(
        self,
        url: str,
        *,
        kind: str = "gateway",
        first_byte_timeout_s: float = FIRST_BYTE_S,
        stall_timeout_s: float = STALL_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._origin = Origin.parse(url)
        pace = Pace(first_byte_s=first_byte_timeout_s, stall_s=stall_timeout_s)
        self._session = GuardedSession([self._origin], pace=pace, tls=tls)
        self.name = str(self._origin)
        self.kind = kind  # gateway or peer: another node serves the same route

    async def read_block(self, cid: Cid) -> bytes:
        """See `Source.read_block`. Asks by the canonical CID: the bytes are the same under every spelling."""
        asked = Asked(self.name, cid)
        url = self._origin.url(f"/ipfs/{cid.canonical}", "format=raw")
        async with self._session.request("GET", url, asked, {"Accept": _RAW}) as reply:
            if reply.status != 200:
                raise _refusal(reply, asked)
            if reply.content_type not in _TYPES_OF_BLOCKS:
                raise asked.fault(f"answers with {reply.content_type[:60]!a}, not with a block", "bad_source")
            return await reply.read(MAX_BLOCK_BYTES)

    ranges = False

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncIterator[bytes]:
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


def _refusal(reply: Reply, asked: Asked) -> SourceUnavailable:
    """The typed failure behind a status that is not 200 (tables G1, G2)."""
    status = reply.status
    if status in _LACKS:
        return asked.fault(f"answers {status}", _LACKS[status])
    if status in (401, 403):
        return AuthRequired(f"{asked.source} answers {status}", source=asked.source, cid=asked.cid)
    if status in _BUSY:
        wait_s = retry_after_s(reply.headers.get("Retry-After"), datetime.now(UTC))
        return asked.fault(f"answers {status}", "rate_limited" if status == 429 else "source_unavailable", wait_s)
    code = "source_unavailable" if status >= 500 else "bad_source"
    return asked.fault(f"answers {status}", code)
