"""The rate and the number of transfers, by a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ipfs_accelerate_node.api.limiter import BURST_S, BUSY_S, PATIENCE_S, SLOW_BYTES, Giving, Limiter, taken_bytes
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


class Line(asyncio.Transport):
    """A connection whose other end took so many bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 1000
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def slots(clock: Clock, rate_bytes: int = 100_000_000) -> Giving:
    def taken(line: asyncio.BaseTransport) -> int:
        assert isinstance(line, Line)
        return line.taken

    return Giving(limiter(clock, rate_bytes), connections=2, clock=clock, taken=taken)


async def test_the_slowest_makes_room_if_it_is_slow() -> None:
    clock, slow, slower, new = Clock(), Line(), Line(), Line()
    giving = slots(clock)
    with giving.transfer(slow), giving.transfer(slower):
        clock.now += PATIENCE_S
        slow.taken += int(PATIENCE_S * SLOW_BYTES) - 2
        slower.taken += int(PATIENCE_S * SLOW_BYTES) - 3
        with giving.transfer(new):
            assert (slow.aborted, slower.aborted) == (False, True)
            assert giving.active == 2
    assert (giving.active, giving.cut, giving.refused) == (0, 1, 0)
    await giving.close()


@pytest.mark.parametrize(
    ("seconds", "taken", "rate_bytes"),
    [
        (PATIENCE_S - 1, 0, 100_000_000),  # too early to tell
        (PATIENCE_S, PATIENCE_S * SLOW_BYTES, 100_000_000),  # not slow
        (PATIENCE_S, PATIENCE_S * 10_000, 80_000),  # a quarter of what we would give to each
    ],
)
async def test_nobody_makes_room_who_cannot_help_it(seconds: float, taken: float, rate_bytes: int) -> None:
    clock, one, other = Clock(), Line(), Line()
    giving = slots(clock, rate_bytes)
    with giving.transfer(one), giving.transfer(other):
        clock.now += seconds
        one.taken += int(taken)
        other.taken += int(taken)
        with pytest.raises(Unavailable), giving.transfer(Line()):
            pytest.fail("one too many")
        assert (one.aborted, other.aborted) == (False, False)
    await giving.close()


@pytest.mark.needs("linux")
async def test_the_system_tells_how_much_was_taken() -> None:
    got = asyncio.Event()
    lines: list[asyncio.Transport] = []

    class Sender(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            lines.append(transport)
            transport.write(bytes(100_000))

        def data_received(self, data: bytes) -> None:
            got.set()

    server = await asyncio.get_running_loop().create_server(Sender, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await reader.readexactly(100_000)
        writer.write(b"all of it")  # acknowledges what came before
        await got.wait()
        assert taken_bytes(lines[0]) == 100_000
        writer.close()
        lines[0].abort()
