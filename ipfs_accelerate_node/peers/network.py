"""Everything between this node and others, as one part: the way in, the ways out, and who has what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.kubo import KuboService
from ipfs_accelerate_node.peers.discovery import Discovery
from ipfs_accelerate_node.peers.door import Door
from ipfs_accelerate_node.peers.remote import Remote
from ipfs_accelerate_node.peers.source import TunnelSource
from ipfs_accelerate_node.peers.tunnels import Tunnels
from ipfs_accelerate_node.records.key import NodeKey


class Peers:
    """Async context manager, within that of kubo. own: the node's key; its PeerID is left out of what is found."""

    def __init__(self, config: Config, kubo: KuboService, own: NodeKey) -> None:
        self._config = config
        self.tunnels = Tunnels(kubo)
        self.door = Door(kubo)
        self.remote = Remote(own, self.tunnels if config.tunnels else None)
        self._discovery = Discovery(kubo, self.tunnels, self.source, own={own.peer_id})
        self._sweep: asyncio.Task[None] | None = None

    def source(self, peer_id: str) -> TunnelSource:
        """Another node by PeerID; nothing is dialled before it is asked for something."""
        return TunnelSource(
            self.tunnels,
            peer_id,
            first_byte_timeout_s=self._config.first_byte_timeout_s,
            stall_timeout_s=self._config.stall_timeout_s,
        )

    @asynccontextmanager
    async def reached(self, peer_id: str) -> AsyncIterator[str]:
        """URL of that node's own listener, through a tunnel that stays open while inside. Raises as `Tunnels.open`."""
        async with self.tunnels.using(peer_id) as tunnel:
            yield tunnel.url

    def providers(self, root: Cid) -> AsyncGenerator[TunnelSource, None]:
        """See `Discovery.providers`."""
        return self._discovery.providers(root)

    @asynccontextmanager
    async def letting_in(self, port: int) -> AsyncIterator[None]:
        """While inside, strangers who dial this node are brought to that port of 127.0.0.1."""
        keeping = asyncio.create_task(self.door.keep(port), name="peers' door")
        try:
            yield
        finally:
            await _ended(keeping)

    async def __aenter__(self) -> Self:
        self._sweep = asyncio.create_task(self.tunnels.run(), name="tunnels")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._sweep is not None:
                await _ended(self._sweep)
        finally:
            await self.tunnels.aclose()


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancels it and waits; a bug that ended it before is raised."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (bug := task.exception()) is not None:
        raise bug
