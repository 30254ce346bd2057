"""Another node by PeerID, as a source: its tunnel is opened when it is first asked, and again when Kubo restarted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import SourceUnavailable, Unavailable
from ipfs_accelerate_node.peers.tunnels import Tunnels
from ipfs_accelerate_node.sources.http import FIRST_BYTE_S, STALL_S
from ipfs_accelerate_node.sources.peer import PeerSource
from ipfs_accelerate_node.sources.source import Held

_LOST = frozenset({"source_unavailable", "truncated", "stalled"})  # what a tunnel's end looks like from here


class TunnelSource:
    """See `Source`. Implements it by a `PeerSource` at this end of the tunnel; until closed it keeps the tunnel from
    being closed as idle."""

    kind = "peer"

    def __init__(
        self,
        tunnels: Tunnels,
        peer_id: str,
        *,
        first_byte_timeout_s: float = FIRST_BYTE_S,
        stall_timeout_s: float = STALL_S,
    ) -> None:
        self.name = f"peer:{peer_id}"
        self.peer_id = peer_id
        self._tunnels = tunnels
        self._first_byte_s = first_byte_timeout_s
        self._stall_s = stall_timeout_s
        self._url: str | None = None
        self._peer: PeerSource | None = None
        self._replaced: list[PeerSource] = []  # requests of theirs may still be under way

    @property
    def ranges(self) -> bool:
        return self._peer is None or self._peer.ranges

    async def read_block(self, cid: Cid) -> bytes:
        """See `Source.read_block`; a peer that cannot be reached: source_unavailable, or the tunnel's own code."""
        async with self._reached(cid) as peer:
            return await peer.read_block(cid)

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """See `Source.read_range`."""
        async with self._reached(file.cid) as peer, aclosing(peer.read_range(file, start, stop)) as pieces:
            async for piece in pieces:
                yield piece

    async def held(self, root: Cid) -> Held | None:
        """See `Source.held`."""
        async with self._reached(root) as peer:
            return await peer.held(root)

    async def settled(self, cids: Sequence[Cid]) -> None:
        """Nothing: a peer keeps what it likes."""

    async def aclose(self) -> None:
        async with AsyncExitStack() as stack:
            for peer in (*self._replaced, *([self._peer] if self._peer else ())):
                stack.push_async_callback(peer.aclose)
            self._peer, self._url, self._replaced = None, None, []

    @asynccontextmanager
    async def _reached(self, cid: Cid) -> AsyncIterator[PeerSource]:
        async with AsyncExitStack() as stack:
            try:
                tunnel = await stack.enter_async_context(self._tunnels.using(self.peer_id))
            except SourceUnavailable:
                raise
            except Unavailable as exc:
                raise SourceUnavailable(
                    f"{self.name}: {exc}", source=self.name, cid=cid, code=exc.code, retry_after_s=exc.retry_after_s
                ) from exc
            if self._peer is None or self._url != tunnel.url:
                if self._peer is not None:
                    self._replaced.append(self._peer)
                self._url = tunnel.url
                self._peer = PeerSource(
                    tunnel.url,
                    name=self.name,
                    first_byte_timeout_s=self._first_byte_s,
                    stall_timeout_s=self._stall_s,
                )
            try:
                yield self._peer
            except SourceUnavailable as exc:
                if exc.code in _LOST:
                    await self._tunnels.doubt(tunnel)
                raise
