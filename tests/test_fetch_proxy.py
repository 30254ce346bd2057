"""A node that fetches over a bad network: cut off, reset, slow, silent, in crumbs, coming and going.

Each fetch ends with the right model or a failure that says what happened, in a time that the small timeouts bound, and
once the network is well again the next pin finishes without asking for what was verified.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.capped import FileServer, describe
from tests.support.node import NodeProcess
from tests.support.pinning import MIB, Pinned, pin, random_model, same_files
from tests.support.proxy import NONE, Proxy, Toxic

pytestmark = pytest.mark.timeout(180)

PATIENCE = ("--stall-timeout-s", "1", "--first-byte-timeout-s", "1")
BOUND_S = 45.0  # of a fetch with those timeouts, on a busy machine; without a bound it would be for ever
BROKEN = frozenset({"truncated", "stalled", "source_unavailable", "bad_source", "no_source"})


@dataclass(frozen=True)
class Model:
    folder: Path
    root: str
    size_bytes: int
    server: FileServer


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """Knows no source: each test names its own."""
    cache = tmp_path_factory.mktemp("node") / "cache"
    cache.mkdir(mode=0o700)
    with NodeProcess(cache, *PATIENCE) as up:
        yield up


@asynccontextmanager
async def model(tmp_path: Path, size_bytes: int, seed: int, **behaviour: Any) -> AsyncIterator[Model]:
    """A model of its own, so that nothing of it is in the node's store, and who serves it."""
    folder = random_model(tmp_path / f"model-{seed}", size_bytes, seed)
    root = describe(folder, description := tmp_path / f"model-{seed}.json")
    with FileServer(description, **behaviour) as server:
        yield Model(folder, root, sum(p.stat().st_size for p in folder.iterdir()), server)


async def fetched(node: NodeProcess, root: str, url: str) -> Pinned:
    """Never longer than the bound."""
    began = time.monotonic()
    done = await asyncio.to_thread(pin, node, root, source=url, timeout_s=BOUND_S)
    assert time.monotonic() - began < BOUND_S
    return done


def right(done: Pinned, wanted: Model) -> bool:
    """Whether the model is here, byte for byte. If not, the failure is one that says what the network did."""
    if done.receipt is not None:
        assert done.receipt["root"] == wanted.root
        assert same_files(Path(done.receipt["path"]), wanted.folder)
        return True
    assert done.error is not None
    assert done.error["code"] in BROKEN, done.error
    assert done.error["status"] in (502, 503, 504), done.error
    return False


async def heals(node: NodeProcess, wanted: Model, proxy: Proxy, done: Pinned) -> None:
    """The next pin finishes where this one broke off; what was verified is not asked for again."""
    if right(done, wanted):
        return
    proxy.toxic = NONE
    before = wanted.server.sent_bytes()
    again = await fetched(node, wanted.root, proxy.url)
    assert right(again, wanted), again.error
    assert again.receipt is not None
    assert again.receipt["bytes_fetched"] + again.receipt["bytes_copied"] <= wanted.size_bytes
    assert wanted.server.sent_bytes() - before <= wanted.size_bytes + MIB


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_every_connection_ends_after_so_many_bytes(node: NodeProcess, tmp_path: Path, reset: bool) -> None:
    """F10, F11."""
    async with model(tmp_path, 6 * MIB, 1 + reset) as wanted:
        async with Proxy(wanted.server.url, Toxic(limit_bytes=2 * MIB + 12_345, reset=reset)) as proxy:
            done = await fetched(node, wanted.root, proxy.url)
            await heals(node, wanted, proxy, done)
            if done.receipt is None and not reset:  # a reset loses what was under way, an end does not
                assert proxy.sent < 2 * wanted.size_bytes  # whole leaves were kept


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_one_connection_ends_in_the_middle(node: NodeProcess, tmp_path: Path, reset: bool) -> None:
    """F10, F11."""
    async with model(tmp_path, 6 * MIB, 3 + reset) as wanted:
        async with Proxy(wanted.server.url, Toxic(limit_bytes=MIB + 100_000, reset=reset)) as proxy:
            proxy.toxic_count = 1
            await heals(node, wanted, proxy, await fetched(node, wanted.root, proxy.url))


async def test_latency_and_jitter(node: NodeProcess, tmp_path: Path) -> None:
    """F12: slow is no failure."""
    async with model(tmp_path, 2 * MIB, 5) as wanted:
        async with Proxy(wanted.server.url, Toxic(latency_s=0.03, jitter_s=0.05)) as proxy:
            assert right(await fetched(node, wanted.root, proxy.url), wanted)


async def test_ten_kilobytes_a_second(node: NodeProcess, tmp_path: Path) -> None:
    """F13: longer than every timeout, and yet never silent."""
    async with model(tmp_path, 30_000, 6) as wanted:
        async with Proxy(wanted.server.url, Toxic(rate_bytes=10_000)) as proxy:
            done = await fetched(node, wanted.root, proxy.url)
            assert right(done, wanted), done.error
            assert done.seconds > 2  # twice the timeout of silence


async def test_a_trickle_is_silence(node: NodeProcess, tmp_path: Path) -> None:
    """F13: a few bytes a second are given up."""
    async with model(tmp_path, 200_000, 7) as wanted:
        async with Proxy(wanted.server.url, Toxic(rate_bytes=60)) as proxy:
            done = await fetched(node, wanted.root, proxy.url)
            assert done.error is not None
            assert done.error["code"] == "stalled"
            await heals(node, wanted, proxy, done)


async def test_accepts_and_says_nothing(node: NodeProcess, tmp_path: Path) -> None:
    """F14."""
    async with model(tmp_path, MIB, 8) as wanted:
        async with Proxy(wanted.server.url, Toxic(silent=True)) as proxy:
            done = await fetched(node, wanted.root, proxy.url)
            assert done.error is not None
            assert done.error["code"] == "stalled"
            assert proxy.url in str(done.error)
            await heals(node, wanted, proxy, done)


async def test_falls_silent_in_the_middle(node: NodeProcess, tmp_path: Path) -> None:
    """F14."""
    async with model(tmp_path, 6 * MIB, 9) as wanted:
        async with Proxy(wanted.server.url) as proxy:
            under_way = asyncio.create_task(fetched(node, wanted.root, proxy.url))
            await proxy.passed(2 * MIB)
            proxy.toxic = Toxic(silent=True)
            done = await under_way
            if not right(done, wanted):
                assert done.error is not None
                assert done.error["code"] == "stalled"
            await heals(node, wanted, proxy, done)


async def test_in_crumbs(node: NodeProcess, tmp_path: Path) -> None:
    """F15: headers, chunk borders and leaves in pieces of one to ten bytes."""
    async with model(tmp_path, 60_000, 10) as wanted:
        async with Proxy(wanted.server.url, Toxic(slice_bytes=10)) as proxy:
            assert right(await fetched(node, wanted.root, proxy.url), wanted)


async def test_nobody_listens(node: NodeProcess, tmp_path: Path) -> None:
    """F16."""
    async with model(tmp_path, MIB, 11) as wanted, Proxy(wanted.server.url) as proxy:
        await proxy.down()
        done = await fetched(node, wanted.root, proxy.url)
        assert done.error is not None
        assert done.error["code"] == "source_unavailable"
        await proxy.up()
        await heals(node, wanted, proxy, done)


async def test_comes_and_goes(node: NodeProcess, tmp_path: Path) -> None:
    """F16: after every 2 MiB it is gone and back again. The fetch goes on with it, or the next pin does; never twice
    for what was verified."""
    async with model(tmp_path, 12 * MIB, 12, rate_bytes=20_000_000) as wanted, Proxy(wanted.server.url) as proxy:

        async def flapping() -> None:
            for times in range(1, 6):
                await proxy.passed(times * 2 * MIB)
                await proxy.down()
                await proxy.up()

        flaps = asyncio.create_task(flapping())
        for _ in range(6):
            if right(await fetched(node, wanted.root, proxy.url), wanted):
                break
        else:
            pytest.fail("it never came to an end")
        flaps.cancel()
        await asyncio.gather(flaps, return_exceptions=True)
        assert proxy.sent <= wanted.size_bytes + 5 * 2 * MIB + MIB  # at each break all since the last may be lost


async def test_another_source_takes_over(tmp_path: Path) -> None:
    """F16: one that is down from the start, one that goes down, and one that stays."""
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with model(tmp_path, 8 * MIB, 13, rate_bytes=20_000_000) as wanted:
        async with (
            Proxy(wanted.server.url) as goes,
            Proxy(wanted.server.url) as gone,
            Proxy(wanted.server.url) as stays,
        ):
            await gone.down()
            urls = [part for proxy in (gone, goes, stays) for part in ("--gateway", proxy.url)]
            with NodeProcess(cache, *PATIENCE, *urls) as up:
                under_way = asyncio.create_task(asyncio.to_thread(pin, up, wanted.root, timeout_s=BOUND_S))
                await goes.passed(MIB)
                await goes.down()
                assert right(await under_way, wanted)
