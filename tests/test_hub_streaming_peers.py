"""Streaming what peers send while they send it: a map that lies, a peer that corrupts, and clients that come and go."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.fetch.pins import Wish
from ipfs_accelerate_node.records.hub_map import HubMap
from ipfs_accelerate_node.sources.hub_names import HubRepo
from tests.support.hub import FakeHub
from tests.support.maps import LIAR, another_map, liar
from tests.support.running import Running, running
from tests.test_hub_streaming import download

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
WEIGHTS = random.Random(2).randbytes(48 * MIB)
WRONG = WEIGHTS[: 20 * MIB] + bytes([WEIGHTS[20 * MIB] ^ 1]) + WEIGHTS[20 * MIB + 1 :]
RIGHT = hashlib.sha256(WEIGHTS).hexdigest()
PATH = "/org/big/resolve/main/model.safetensors"
CONFIG = "/org/big/resolve/main/config.json"


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/big", {"config.json": b"{}", "model.safetensors": WEIGHTS})
        fake.repo("org/wrong", {"config.json": b"{}", "model.safetensors": WRONG})
        yield fake


@pytest.fixture
async def first(tmp_path: Path, hub: FakeHub) -> AsyncIterator[Running]:
    """It has both."""
    (cache := tmp_path / "first").mkdir(mode=0o700)
    async with running(cache, hf_upstream=hub.url) as node:
        for repo in ("org/big", "org/wrong"):
            *_, job = [state async for state in node.node.updates(node.node.start_pin(f"hf:{repo}", Wish()))]
            assert job.receipt is not None, job.error
        hub.seen.clear()
        hub.sent_bytes = 0
        yield node


def lying(first: Running) -> Callable[[HubMap], HubMap]:
    """The map of the right files with the CIDs of the wrong ones: nothing in it contradicts itself."""
    model = first.node.find("hf:org/wrong")
    plan = first.node.store.plan(model.root)
    assert plan is not None
    cids = {file.path: file.cid for file in plan.files}

    def change(found: HubMap) -> HubMap:
        files = tuple(replace(file, cid=cids.get(file.path)) for file in found.files)
        return replace(found, root=Cid.parse(str(model.root)), files=files)

    return change


async def test_a_map_that_lies_is_found_out_before_the_end_of_the_file(
    cache: Path, hub: FakeHub, first: Running, tmp_path: Path
) -> None:
    """The real client is cut off, comes back, and has the right file; the liar is named and not believed again."""
    async with (
        liar(first, another_map(lying(first))) as url,
        running(cache, hf_upstream=hub.url, peers=(url,)) as node,
    ):
        assert await download(node.url, tmp_path / "client") == RIGHT
        maps = node.node.hub._claims.maps
        assert maps.of(HubRepo("org/big"), hub.repos["org/big"].refs["main"]) == []
        assert LIAR.peer_id in "".join(path.read_text("latin-1") for path in (cache / "maps").rglob("*.json"))


@pytest.mark.parametrize("offline", [True, False])
async def test_where_only_the_liar_is_left_there_is_an_error(
    cache: Path, hub: FakeHub, first: Running, offline: bool
) -> None:
    """The Hub cannot be asked at all, or goes away after it said which oid is right."""
    async with (
        liar(first, another_map(lying(first))) as url,
        running(cache, hf_upstream=hub.url, hf_offline=offline, peers=(url,)) as node,
    ):
        if not offline:
            assert (await node.ask("HEAD", PATH)).status == 200
            hub.budget = 0
        got = bytearray()
        for _ in range(4):
            try:
                if await _read(node, got) >= 400:
                    break
            except aiohttp.ClientPayloadError:
                continue
        else:
            pytest.fail("no answer was an error")
        assert len(got) < len(WEIGHTS)


async def _read(node: Running, got: bytearray) -> int:
    """The rest of the file; the status of the answer. What is answered from the start takes the place of what came."""
    async with node.session.get(node.url + PATH, headers={"Range": f"bytes={len(got)}-"}) as reply:
        if reply.status == 200:
            got.clear()
        if reply.status < 400:
            async for piece in reply.content.iter_any():
                got += piece
        return reply.status


@asynccontextmanager
async def corrupting(first: Running, at: int) -> AsyncIterator[tuple[str, list[int]]]:
    """The first node with a wrong bit in the byte at that offset of whatever file is asked for; where answers with that
    byte began."""
    struck: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        sent = {"Range": asked} if (asked := request.headers.get("Range")) else {}
        reply = await first.ask(request.method, request.path_qs, headers=sent)
        body = bytearray(reply.body)
        found = re.fullmatch(r"bytes (\d+)-.*", reply.headers.get("Content-Range", ""))
        start = int(found[1]) if found else 0
        if request.path.startswith("/ipfs/") and start <= at < start + len(body):
            struck.append(start)
            body[at - start] ^= 1
        kept = {k: v for k, v in reply.headers.items() if k in ("Content-Type", "Content-Range", "Etag")}
        return web.Response(body=bytes(body), status=reply.status, headers=kept)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", struck
    finally:
        await runner.cleanup()


async def test_a_wrong_bit_in_the_middle_of_what_a_peer_sends_reaches_nobody(
    cache: Path, hub: FakeHub, first: Running, tmp_path: Path
) -> None:
    async with (
        corrupting(first, 20 * MIB + 5) as (url, _),
        running(cache, hf_upstream=hub.url, peers=(url,)) as node,
    ):
        hub.faults["model.safetensors"] = ["stall"]  # so the peer has to bring more than its share
        assert await download(node.url, tmp_path / "client") == RIGHT
        stored = node.node.store.of_oid(bytes.fromhex(RIGHT), len(WEIGHTS))
        assert stored is not None
        assert hashlib.sha256(stored.path.read_bytes()).hexdigest() == RIGHT


async def test_where_only_the_corrupting_peer_is_left_there_is_an_error(
    cache: Path, hub: FakeHub, first: Running
) -> None:
    async with (
        corrupting(first, 20 * MIB + 5) as (url, struck),
        running(cache, hf_upstream=hub.url, hf_offline=True, peers=(url,)) as node,
    ):
        got = bytearray()
        with pytest.raises(aiohttp.ClientPayloadError):
            await _read(node, got)
        assert struck
        assert WEIGHTS.startswith(bytes(got))


async def test_a_client_and_a_pin_are_one_transfer(cache: Path, hub: FakeHub) -> None:
    """Whoever came first."""
    for number, pin_first in enumerate((True, False)):
        (folder := cache / str(number)).mkdir(mode=0o700)
        hub.sent_bytes = 0
        async with running(folder, hf_upstream=hub.url) as node:
            assert (await node.ask("HEAD", PATH)).status == 200
            job = node.node.start_pin("hf:org/big", Wish()) if pin_first else None
            async with node.session.get(node.url + PATH) as reply:
                job = job or node.node.start_pin("hf:org/big", Wish())
                assert await reply.read() == WEIGHTS
            *_, ended = [state async for state in node.node.updates(job)]
            assert ended.receipt is not None, ended.error
        assert hub.sent_bytes <= len(WEIGHTS) + 2 + MIB


async def test_a_client_reads_on_when_the_pin_that_brought_the_file_is_stopped(cache: Path, hub: FakeHub) -> None:
    """Without a new request: who waited for the file goes on bringing it, from what came, and it is the same copy."""
    async with running(cache, hf_upstream=hub.url, stall_timeout_s=60.0) as node:
        assert (await node.ask("HEAD", PATH)).status == 200
        hub.faults["model.safetensors"] = ["stall"] * 4
        job = node.node.start_pin("hf:org/big", Wish())
        async for state in node.node.updates(job):
            if state.bytes_done > 4 * MIB:
                break
        async with node.session.get(node.url + PATH) as reply:
            assert await reply.content.readexactly(2 * MIB) == WEIGHTS[: 2 * MIB]
            await node.node.unpin("hf:org/big")
            assert await reply.read() == WEIGHTS[2 * MIB :]
        assert not node.node.store.unnamed.was_given(RIGHT)
        assert hub.sent_bytes <= len(WEIGHTS) + 2 + MIB


async def test_a_client_that_vanishes_ends_nothing_for_others(cache: Path, hub: FakeHub) -> None:
    async with running(cache, hf_upstream=hub.url) as node:

        async def vanish() -> None:
            async with node.session.get(node.url + PATH) as reply:
                await reply.content.readexactly(2 * MIB)

        async def stay() -> bytes:
            async with node.session.get(node.url + PATH) as reply:
                return await reply.read()

        *_, got = await asyncio.gather(vanish(), vanish(), stay())
        assert got == WEIGHTS
        assert hub.sent_bytes == len(WEIGHTS)


async def test_what_nobody_wants_any_more_stops_and_is_kept(cache: Path, hub: FakeHub) -> None:
    loop = asyncio.get_running_loop()
    async with running(cache, hf_upstream=hub.url, stall_timeout_s=60.0) as node:
        hub.faults["model.safetensors"] = ["stall"] * 4
        async with node.session.get(node.url + PATH) as reply:
            await reply.content.readexactly(2 * MIB)
        left = loop.time()
        assert not hub.idle.is_set()
        async with asyncio.timeout(10):
            await hub.idle.wait()
        assert loop.time() - left < 4  # seconds; it is to be one and a half
        hub.faults["model.safetensors"] = []
        hub.sent_bytes = 0
        assert (await node.ask("GET", PATH)).body == WEIGHTS
        assert hub.sent_bytes <= len(WEIGHTS) - 4 * MIB  # half of what each of its connections had asked for was here
