"""What every handler finds in its application, and the traffic counter that lets the daemon stop and lose no work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from aiohttp import web

from ipfs_accelerate_node.api.access import Gate
from ipfs_accelerate_node.api.browser import Origins
from ipfs_accelerate_node.api.keys import Caller, KeyRing
from ipfs_accelerate_node.api.metrics import Metrics
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.node import Node

T = TypeVar("T")


class Traffic:
    """Requests under way. Once draining, no new work is admitted and every told listener ends what has no end."""

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._listeners: list[Callable[[], None]] = []

    @contextmanager
    def request(self) -> Iterator[None]:
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    @contextmanager
    def told(self, listener: Callable[[], None]) -> Iterator[None]:
        """Calls the listener when draining starts, at once if it has."""
        self._listeners.append(listener)
        if self.draining:
            listener()
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def drain(self) -> None:
        self.draining = True
        for listener in self._listeners:
            listener()

    async def idle(self) -> None:
        await self._idle.wait()


NODE: web.AppKey[Node] = web.AppKey("node", Node)
CONFIG: web.AppKey[Config] = web.AppKey("config", Config)
KEYS: web.AppKey[KeyRing] = web.AppKey("keys", KeyRing)
GATE: web.AppKey[Gate] = web.AppKey("gate", Gate)
ORIGINS: web.AppKey[Origins] = web.AppKey("origins", Origins)
TRAFFIC: web.AppKey[Traffic] = web.AppKey("traffic", Traffic)
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
CALLER: web.RequestKey[Caller | None] = web.RequestKey("caller", Caller)


def node(request: web.Request) -> Node:
    return request.app[NODE]


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Runs what must not stop half-way: a caller who leaves is noticed only after its end.

    Raises what the work raises; CancelledError, when this was cancelled, once the work has ended.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody is there to hear it; the work has logged what a person must know
        raise
