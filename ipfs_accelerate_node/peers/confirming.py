"""Whether somebody has the model that results are about: what is claimed of one that nobody has is shown, not ranked.

Confirmed is what is stored here, what was confirmed a while ago, or a root whose block somebody gave just now: a node
that answered, or the network by Kubo. One block and a bounded time; who has the rest is for a pin to find out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.kubo import KuboService
from ipfs_accelerate_node.peers.results import Patience, Reach
from ipfs_accelerate_node.peers.results_store import ResultsStore
from ipfs_accelerate_node.sources.peer import PeerSource

log = logging.getLogger(__name__)

LASTS_S = 30 * 24 * 3600  # a model that somebody had is not looked for again so soon
MAX_ASKED = 32  # of those who answered
_AT_ONCE = 8


class Confirming:
    """here: whether this node has a root itself; blocks. reach: as `Results` has it."""

    def __init__(
        self,
        store: ResultsStore,
        kubo: KuboService,
        *,
        here: Callable[[Cid], bool],
        reach: Reach | None,
        patience: Patience,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._kubo = kubo
        self._here = here
        self._reach = reach
        self._patience = patience
        self._now_s = now_s

    def known(self, model: Cid) -> bool:
        """Without asking anybody. Blocks."""
        when = self._store.confirmed(model)
        return (when is not None and self._now_s() - when < LASTS_S) or self._here(model)

    async def by_network(self, model: Cid) -> bool:
        """Kubo gets the root's block, from whoever it is connected to or finds."""
        try:
            block = await self._kubo.client.block_get(model, timeout_s=self._patience.search)
            model.check(block, "kubo")
        except NodeError as exc:
            log.info("confirm.not_found model=%s code=%s", model, exc.code)
            return False
        return await self._noted(model)

    async def by_peers(self, model: Cid, peers: Sequence[str]) -> bool:
        """One of these gives the root's block; each has its own time, the first ends it."""
        at_once = asyncio.Semaphore(_AT_ONCE)
        asking = [
            asyncio.create_task(self._has(peer, model, at_once), name=f"confirm by {peer}")
            for peer in peers[:MAX_ASKED]
        ]
        try:
            for answered in asyncio.as_completed(asking):
                if await answered:
                    return await self._noted(model)
        finally:
            for task in asking:
                task.cancel()
            if asking:
                await asyncio.wait(asking)
        return False

    async def _has(self, peer: str, model: Cid, at_once: asyncio.Semaphore) -> bool:
        where = peer_id(peer)
        patience_s = self._patience.http if where is None else self._patience.reach
        try:
            async with at_once, asyncio.timeout(patience_s), AsyncExitStack() as stack:
                url = peer
                if where is not None:
                    if self._reach is None:
                        return False
                    url = await stack.enter_async_context(self._reach(where))
                source = PeerSource(url, name=peer, first_byte_timeout_s=patience_s, stall_timeout_s=patience_s)
                stack.push_async_callback(source.aclose)
                model.check(await source.read_block(model), peer)
        except (TimeoutError, NodeError) as exc:
            log.info("confirm.not_here model=%s peer=%s reason=%s", model, peer, exc or "no answer in time")
            return False
        return True

    async def _noted(self, model: Cid) -> bool:
        await in_thread(self._store.note_confirmed, model, int(self._now_s()))
        return True
