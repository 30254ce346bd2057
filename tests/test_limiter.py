"""The rate and the number of transfers, by a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ipfs_accelerate_node.api.limiter import BURST_S, BUSY_S, Giving, Limiter
from ipfs_accelerate_node.api.traffic import Traffic
from ipfs_accelerate_node.errors import Unavailable


class Clock:
    """Time that passes only where someone sleeps; naps: how long each was."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []
        self.held: asyncio.Event | None = None
        self.asleep = asyncio.Event()
        self.on_nap: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.asleep.set()
        self.on_nap()
        if self.held is not None:
            await self.held.wait()
        await asyncio.sleep(0)
        self.now += seconds


def limiter(clock: Clock, rate_bytes: int, busy: Callable[[], bool] = lambda: True) -> Limiter:
    return Limiter(rate_bytes, busy, clock=clock, sleep=clock.sleep)


async def test_nothing_is_slowed_and_no_timer_runs_while_no_model_works() -> None:
    clock = Clock()
    limits = limiter(clock, 1_000_000, lambda: False)
    for _ in range(100):
        await limits.turn(limits.slice_bytes())
    assert clock.naps == []


@pytest.mark.parametrize("rate_bytes", [1_000_000, 100_000_000, 10_000_000_000])
async def test_all_together_stay_under_the_rate_while_a_model_works(rate_bytes: int) -> None:
    clock = Clock()
    limits = limiter(clock, rate_bytes)
    size = limits.slice_bytes()

    async def connection() -> None:
        for _ in range(50):
            await limits.turn(size)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(connection())
    took = clock.now - 1000
    due = 200 * size / rate_bytes
    assert due - BURST_S - size / rate_bytes - 1e-6 <= took <= due
    assert all(nap > 0 for nap in clock.naps)


async def test_turns_go_round() -> None:
    clock = Clock()
    limits = limiter(clock, 1_000_000)
    served: list[str] = []

    async def connection(name: str) -> None:
        for _ in range(6):
            await limits.turn(500_000)
            served.append(name)

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(connection(name))
    assert "".join(served).startswith("aabcabcabcabc")  # the very first had nobody to wait for


async def test_who_waits_goes_on_when_no_model_works_any_more() -> None:
    clock = Clock()
    works = [True]
    limits = limiter(clock, 1_000_000, lambda: works[0])
    await limits.turn(100_000_000)
    clock.on_nap = lambda: works.__setitem__(0, False)
    await limits.turn(1)
    assert clock.naps == [BUSY_S]


async def test_a_turn_that_was_cancelled_costs_nothing() -> None:
    clock = Clock()
    limits = limiter(clock, 1_000_000)
    await limits.turn(1_000_000)
    clock.held = asyncio.Event()
    clock.asleep.clear()
    turn = asyncio.create_task(limits.turn(50_000_000))
    await clock.asleep.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    clock.held = None
    before = clock.now
    await limits.turn(1_000_000)
    assert clock.now - before <= 1.0


async def test_inference_counts_as_busy_a_while_after_its_end() -> None:
    clock = Clock()
    traffic = Traffic(clock)
    assert not traffic.inferred_within(BUSY_S)
    with traffic.inference():
        clock.now += 100
        assert traffic.inferred_within(BUSY_S)
    clock.now += BUSY_S / 2
    assert traffic.inferred_within(BUSY_S)
    clock.now += BUSY_S
    assert not traffic.inferred_within(BUSY_S)


async def test_so_many_transfers_at_a_time() -> None:
    giving = Giving(limiter(Clock(), 1), connections=2)
    with giving.transfer():
        with giving.transfer():
            for _ in range(3):
                with pytest.raises(Unavailable) as refused, giving.transfer():
                    pytest.fail("one too many")
                assert (refused.value.code, refused.value.retry_after_s) == ("too_many_transfers", 1.0)
        with giving.transfer():
            assert giving.active == 2
    assert (giving.active, giving.refused) == (0, 3)
    await giving.close()
