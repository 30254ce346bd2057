"""Who has a root: those who announced it on the network, and of them those who run this node, as sources.

Each candidate is dialled and asked on its own, with a time of its own, so one that is dead, slow or something else
costs nobody else anything. What runs no node is remembered for a while and not asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError, Overloaded, Unavailable
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.peers.source import TunnelSource
from ipfs_accelerate_node.peers.tunnels import Tunnels

log = logging.getLogger(__name__)

MAX_SOURCES = 16
MAX_CANDIDATES = 64  # of one search
SEARCH_S = 60.0
REACH_S = 8.0  # for one candidate: found to have an address, dialled, asked who it is
KUBO_PATIENCE_S = 20.0
FORGET_S = 300.0
_REMEMBERED = 1024


class Discovery:
    """own: PeerIDs that are this node itself, beside its Kubo's. source: makes the source for a PeerID."""

    def __init__(
        self,
        kubo: KuboService,
        tunnels: Tunnels,
        source: Callable[[str], TunnelSource],
        *,
        own: Collection[str],
        reach_s: float = REACH_S,
        search_s: float = SEARCH_S,
    ) -> None:
        self._kubo = kubo
        self._tunnels = tunnels
        self._source = source
        self._own = frozenset(own)
        self._reach_s = reach_s
        self._search_s = search_s
        self._not_nodes: dict[str, float] = {}  # until when (monotonic)

    async def providers(self, root: Cid) -> AsyncGenerator[TunnelSource, None]:
        """Nodes that announced root, each once, as they are reached; at most MAX_SOURCES, none when there is no Kubo.

        Whoever takes a source closes it; close the iterator (`aclosing`) to end the search.
        """
        found: asyncio.Queue[TunnelSource | None] = asyncio.Queue()
        search = asyncio.create_task(self._search(root, found), name=f"providers {root}")
        search.add_done_callback(lambda _: found.put_nowait(None))
        try:
            for _ in range(MAX_SOURCES):
                if (source := await found.get()) is None:
                    search.result()  # a bug is raised here, nothing else is
                    return
                yield source
        finally:
            search.cancel()
            await asyncio.wait([search])
            while not found.empty():
                if (source := found.get_nowait()) is not None:
                    await source.aclose()

    async def _search(self, root: Cid, found: asyncio.Queue[TunnelSource | None]) -> None:
        try:
            client = await self._kubo.wait_ready(KUBO_PATIENCE_S)
            async with asyncio.TaskGroup() as group:
                await self._ask_all(client, root, found, group)
        except Unavailable as exc:
            log.info("providers.unknown root=%s reason=%s", root, exc)

    async def _ask_all(
        self, client: KuboClient, root: Cid, found: asyncio.Queue[TunnelSource | None], group: asyncio.TaskGroup
    ) -> None:
        at_once = asyncio.Semaphore(MAX_SOURCES)
        names = client.find_providers(root, limit=MAX_CANDIDATES, timeout_s=self._search_s)
        try:
            async with aclosing(names):
                async for peer_id in names:
                    if peer_id not in self._own and peer_id != client.peer_id and not self._known_other(peer_id):
                        group.create_task(self._ask(peer_id, found, at_once), name=f"ask {peer_id}")
        except Unavailable as exc:  # those found before are still asked
            log.info("providers.cut root=%s reason=%s", root, exc)

    async def _ask(self, peer_id: str, found: asyncio.Queue[TunnelSource | None], at_once: asyncio.Semaphore) -> None:
        """One candidate: a bad one must not hide the others."""
        async with at_once:
            try:
                async with asyncio.timeout(self._reach_s):
                    async with self._tunnels.using(peer_id, timeout_s=self._reach_s) as tunnel:
                        node_id = tunnel.who.peer_id
            except (TimeoutError, NodeError) as exc:
                log.info("providers.passed peer=%s reason=%s", peer_id, exc or "no answer in time")
                if not isinstance(exc, Overloaded) and getattr(exc, "code", "") != "kubo_unavailable":
                    self._remember(peer_id)
                return
        if node_id not in self._own:
            found.put_nowait(self._source(peer_id))

    def _known_other(self, peer_id: str) -> bool:
        return self._not_nodes.get(peer_id, 0.0) > time.monotonic()

    def _remember(self, peer_id: str) -> None:
        self._not_nodes.pop(peer_id, None)
        self._not_nodes[peer_id] = time.monotonic() + FORGET_S
        while len(self._not_nodes) > _REMEMBERED:
            del self._not_nodes[next(iter(self._not_nodes))]
