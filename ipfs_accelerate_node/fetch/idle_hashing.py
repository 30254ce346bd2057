"""Hashes, while nothing else is going on, what fetches left for later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.store import Store

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0  # while the node is busy
AFTER_FAILURE_S = 60.0


async def hash_when_idle(store: Store, busy: Callable[[], bool]) -> None:
    """Runs until it is cancelled; goes on after a restart with what was left. busy: whether somebody needs the
    processor now, besides transfers, which it knows of."""
    loop = asyncio.get_running_loop()
    more = asyncio.Event()
    more.set()
    store.hashing.on_unhashed = lambda: _tell(loop, more)
    try:
        while True:
            await more.wait()
            more.clear()
            await _hash_all(store, busy)
    finally:
        store.hashing.on_unhashed = lambda: None


async def _hash_all(store: Store, busy: Callable[[], bool]) -> None:
    left = True
    while left:
        if store.transferring or busy():
            await asyncio.sleep(LOOK_AGAIN_S)
            continue
        try:
            left = await in_thread(store.hashing.forward)
        except NodeError as exc:
            log.warning("store.hashing_failed reason=%s", exc)
            await asyncio.sleep(AFTER_FAILURE_S)


def _tell(loop: asyncio.AbstractEventLoop, more: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(more.set)
