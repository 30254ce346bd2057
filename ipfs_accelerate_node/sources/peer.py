"""Another node of this program, by URL: blocks, ranges of files, and what it has of a root.

It may be a LAN address that the user configured, or this end of a tunnel. Whoever it is, its bytes are hashed by the
caller like anyone's, and what it says it holds is a claim.
"""

from __future__ import annotations

import base64
import binascii
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated

import msgspec

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import InvalidCid, SourceUnavailable
from ipfs_accelerate_node.sources import answers
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import FIRST_BYTE_S, STALL_S, Asked, GuardedSession, Pace
from ipfs_accelerate_node.sources.source import MAX_BLOCK_BYTES, Held

MAX_HELD_FILES = 10_000  # as many as a model may have
MAX_HELD_BYTES = 8 << 20  # of the answer about a root: a MiB of bitmaps, and that many paths
MAX_LEAVES = MAX_HELD_BYTES * 8  # no bitmap that fits says more


class _HeldFile(msgspec.Struct):
    cid: Annotated[str, msgspec.Meta(max_length=256)]
    leaves: Annotated[int, msgspec.Meta(ge=0, le=MAX_LEAVES)]
    bitmap: str


class _HeldAnswer(msgspec.Struct):
    root: Annotated[str, msgspec.Meta(max_length=256)]
    complete: bool
    files: Annotated[list[_HeldFile], msgspec.Meta(max_length=MAX_HELD_FILES)]


class PeerSource:
    """One peer, with a session of its own: what is configured for one is not granted to a redirect of another.

    url: an origin; raises InvalidConfig (G10). name: what the user calls it, the URL if None. tls: None for the
    system's certificates.
    """

    kind = "peer"

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        first_byte_timeout_s: float = FIRST_BYTE_S,
        stall_timeout_s: float = STALL_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._origin = Origin.parse(url)
        pace = Pace(first_byte_s=first_byte_timeout_s, stall_s=stall_timeout_s)
        self._session = GuardedSession([self._origin], pace=pace, tls=tls)
        self.name = name or str(self._origin)
        self.ranges = True

    async def read_block(self, cid: Cid) -> bytes:
        """See `Source.read_block`. Asks by the canonical CID: the bytes are the same under every spelling. The peer
        hashes the block before it sends it, and so finds damage of its own."""
        asked = Asked(self.name, cid)
        url = self._origin.url(f"/ipfs/{cid.canonical}", "format=raw")
        async with self._session.request("GET", url, asked, {"Accept": answers.RAW_TYPE}) as reply:
            return await answers.block(reply, asked, MAX_BLOCK_BYTES)

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """See `Source.read_range`. not_found: it has not all of these bytes now."""
        if stop <= start:
            return
        asked = Asked(self.name, file.cid)
        url = self._origin.url(f"/ipfs/{file.cid.canonical}")
        try:
            async with self._session.request("GET", url, asked, answers.range_header(start, stop)) as reply:
                async with aclosing(answers.span(reply, asked, start, stop, file.size)) as pieces:
                    async for piece in pieces:
                        yield piece
        except SourceUnavailable as exc:
            if exc.code == "no_ranges":
                self.ranges = False
            raise

    async def held(self, root: Cid) -> Held | None:
        """See `Source.held`. A peer that knows nothing of the root holds nothing of it."""
        asked = Asked(self.name, root)
        url = self._origin.url(f"/api/have/{root.canonical}")
        async with self._session.request("GET", url, asked, {"Accept": "application/json"}) as reply:
            if reply.status == 404:
                return Held(complete=False, files={})
            if reply.status == 413:  # more leaves than one answer can tell of
                return None
            if reply.status != 200:
                raise answers.refusal(reply, asked)
            if reply.content_type != "application/json":
                raise asked.fault(f"answers with {reply.content_type[:60]!a}, not with JSON", "bad_source")
            body = await reply.read(MAX_HELD_BYTES)
        try:
            return _held(body, root)
        except (msgspec.DecodeError, binascii.Error, RecursionError, InvalidCid, ValueError) as exc:
            raise asked.fault(
                f"says nothing usable about what it has ({ascii(str(exc))[1:120]})", "bad_source"
            ) from exc

    async def settled(self, cids: Sequence[Cid]) -> None:
        """Nothing: a peer keeps what it likes."""

    async def aclose(self) -> None:
        await self._session.aclose()


def _held(body: bytes, root: Cid) -> Held:
    """Raises ValueError (msgspec's and base64's errors are such, but for one) for an answer that is not exactly what
    the route promises."""
    answer = msgspec.json.decode(body, type=_HeldAnswer)
    if Cid.parse(answer.root).canonical != root.canonical:
        raise ValueError("it speaks of another root")
    files: dict[Cid, bytes] = {}
    for file in answer.files:
        bitmap = base64.b64decode(file.bitmap, validate=True)
        if len(bitmap) != (file.leaves + 7) // 8:
            raise ValueError(f"{len(bitmap)} bytes for {file.leaves} leaves")
        files[Cid.parse(file.cid).canonical] = bitmap
    return Held(answer.complete, files)
