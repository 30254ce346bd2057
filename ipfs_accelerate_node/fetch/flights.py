"""Work that several callers wait for: done once, in a task of its own, whoever asked first and whoever leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ipfs_accelerate_node.errors import Unavailable

K = TypeVar("K")
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T | BaseException]
    waiting: int = 0


class Flights(Generic[K, T]):
    """One task per key. It lives in group; when nobody has waited for linger_s any more, it is cancelled: so long a
    client that timed out has to come back for the same."""

    def __init__(self, group: asyncio.TaskGroup, *, linger_s: float = 0.0) -> None:
        self._group = group
        self._linger_s = linger_s
        self._closed = False
        self._under_way: dict[K, _Flight[T]] = {}
        self.joined = 0  # callers who waited for what another one had begun

    async def join(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of work for this key, begun now or earlier. Raises what it raises, and Unavailable (code
        shutting_down) when the node stops meanwhile."""
        while not self._closed:
            flight = self._under_way.get(key)
            if flight is None:
                flight = self._under_way[key] = _Flight(self._group.create_task(_outcome(work)))
                flight.task.add_done_callback(lambda _: self._under_way.pop(key, None))
            else:
                self.joined += 1
            await self._wait(flight)
            if flight.task.cancelled():
                continue
            outcome = flight.task.result()
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        raise Unavailable("the node is stopping", code="shutting_down", retry_after_s=5)

    async def _wait(self, flight: _Flight[T]) -> None:
        flight.waiting += 1
        try:
            await asyncio.wait({flight.task})
        finally:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.task.done():
                asyncio.get_running_loop().call_later(self._linger_s, self._abandon, flight)

    def leads(self, key: K) -> bool:
        """Whether `join` would begin the work, not wait for what another caller began."""
        return key not in self._under_way

    def close(self) -> None:
        self._closed = True
        for flight in self._under_way.values():
            flight.task.cancel()

    def _abandon(self, flight: _Flight[T]) -> None:
        if flight.waiting == 0:
            flight.task.cancel()


async def _outcome(work: Callable[[], Coroutine[Any, Any, T]]) -> T | BaseException:
    """A failure is the callers' to hear, a bug too: raised here it would end the whole group, and so the node."""
    outcomes: Sequence[T | BaseException] = await asyncio.gather(work(), return_exceptions=True)
    return outcomes[0]
