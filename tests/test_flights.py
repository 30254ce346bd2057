"""Work that several callers wait for: once, whoever leaves; ended when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ipfs_accelerate_node.errors import NotFound, Unavailable
from ipfs_accelerate_node.fetch.flights import Flights


class Work:
    """Ends when told to."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.may_end = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.has_ended = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        self.has_begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.has_ended.set()
        return self.begun


@asynccontextmanager
async def flying(linger_s: float = 0.0) -> AsyncIterator[Flights[str, int]]:
    async with asyncio.TaskGroup() as group:
        flights: Flights[str, int] = Flights(group, linger_s=linger_s)
        yield flights
        flights.close()


async def test_all_who_wait_get_the_one_outcome() -> None:
    work = Work()
    async with flying() as flights:
        callers = [asyncio.create_task(flights.join("a", work)) for _ in range(5)]
        await work.has_begun.wait()
        assert not flights.leads("a")
        assert flights.leads("b")
        work.may_end.set()
        assert await asyncio.gather(*callers) == [1] * 5
        assert await flights.join("a", work) == 2  # an outcome is not kept


async def test_who_began_it_may_leave() -> None:
    work = Work()
    async with flying() as flights:
        first = asyncio.create_task(flights.join("a", work))
        await work.has_begun.wait()
        second = asyncio.create_task(flights.join("a", work))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        work.may_end.set()
        assert await second == 1


async def test_when_the_last_has_left_it_ends() -> None:
    work = Work()
    async with flying() as flights:
        caller = asyncio.create_task(flights.join("a", work))
        await work.has_begun.wait()
        caller.cancel()
        await work.has_ended.wait()
        assert work.cancelled == 1
        work.may_end.set()
        assert await flights.join("a", work) == 2


async def test_who_comes_back_in_time_finds_it_under_way() -> None:
    work = Work()
    async with flying(linger_s=60.0) as flights:
        caller = asyncio.create_task(flights.join("a", work))
        await work.has_begun.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        back = asyncio.create_task(flights.join("a", work))
        await asyncio.sleep(0)
        work.may_end.set()
        assert await back == 1


@pytest.mark.parametrize("failure", [NotFound("nothing is here"), ZeroDivisionError()])
async def test_a_failure_is_every_callers_and_not_the_groups(failure: Exception) -> None:
    async def fails() -> int:
        raise failure

    async with flying() as flights:
        outcomes = await asyncio.gather(*(flights.join("a", fails) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(failure)] * 3


async def test_a_node_that_stops_says_so() -> None:
    work = Work()
    async with flying() as flights:
        caller = asyncio.create_task(flights.join("a", work))
        await work.has_begun.wait()
        flights.close()
        with pytest.raises(Unavailable) as caught:
            await caller
        assert caught.value.code == "shutting_down"
