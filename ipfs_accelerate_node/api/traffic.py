"""Requests under way, and how the daemon stops without losing any; work that must not stop half-way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from aiohttp import web

from ipfs_accelerate_node.errors import Overloaded

MAX_HELD_BYTES = 512 << 20  # of bodies in memory, of all requests under way

T = TypeVar("T")


class Held:
    """What one request holds of the room that there is for bodies."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self.size_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Raises Overloaded: others hold so much that there is no room for more; a request alone always has room."""
        held = self._traffic.held_bytes
        if held + size_bytes > MAX_HELD_BYTES and held > self.size_bytes:
            raise Overloaded(f"bodies of {held >> 20} MiB are being read", retry_after_s=1.0)
        self.size_bytes += size_bytes
        self._traffic.held_bytes += size_bytes


HELD: web.RequestKey[Held] = web.RequestKey("held", Held)


class Traffic:
    """Requests under way. Once draining, no new work is admitted and every told listener ends what has no end.
    held_bytes: of bodies that are in memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.held_bytes = 0
        self.draining = False
        self._clock = clock
        self._inferring = 0
        self._inferred_s = float("-inf")
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting: list[asyncio.Future[None]] = []
        self._listeners: list[Callable[[], None]] = []

    @contextmanager
    def request(self) -> Iterator[Held]:
        held = Held(self)
        self.in_flight += 1
        self._idle.clear()
        try:
            yield held
        finally:
            self.held_bytes -= held.size_bytes
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    @contextmanager
    def inference(self) -> Iterator[None]:
        """While a model works for someone."""
        self._inferring += 1
        try:
            yield
        finally:
            self._inferring -= 1
            self._inferred_s = self._clock()
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(None)

    @property
    def inferring(self) -> int:
        """For how many a model works now."""
        return self._inferring

    async def until(self, fits: Callable[[], bool]) -> None:
        """Returns when fits() says so, which is asked again whenever a model ended its work for someone; in the order
        in which they came."""
        while not fits():
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                self._waiting.remove(waiter)

    def inferred_within(self, seconds: float) -> bool:
        """Whether a model works for someone now, or did so that lately."""
        return self._inferring > 0 or self._clock() - self._inferred_s < seconds

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
