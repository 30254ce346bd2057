"""Files whose leaves this node knows, because it had them before: streamed leaf by leaf, whatever their size."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.fetch.pins import Wish
from tests.support.hub import FakeHub
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20
SMALL, LARGE = random.Random(3).randbytes(8 * MIB + 7), random.Random(4).randbytes(48 * MIB)
FILES = {"config.json": b"{}", "small.safetensors": SMALL, "sub/large.safetensors": LARGE}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/known", FILES)
        yield fake


@pytest.fixture
async def node(cache: Path, hub: FakeHub) -> AsyncIterator[Running]:
    """It had the model, checked, and removed it."""
    async with running(cache, hf_upstream=hub.url, stall_timeout_s=30.0) as up:
        *_, job = [state async for state in up.node.updates(up.node.start_pin("hf:org/known", Wish()))]
        assert job.receipt is not None, job.error
        await up.node.remove(job.receipt.root, force=True)
        assert up.node.models() == []
        await up.node.gc()
        hub.seen.clear()
        yield up


def url(path: str) -> str:
    return f"/org/known/resolve/main/{path}"


@pytest.mark.parametrize(("path", "content"), [("small.safetensors", SMALL), ("sub/large.safetensors", LARGE)])
async def test_what_came_is_given_before_all_of_it_is_here(
    node: Running, hub: FakeHub, path: str, content: bytes
) -> None:
    """The upstream stops halfway: what it sent until then is with the client, the end of the file is not waited for."""
    hub.faults[path] = ["stall"]
    async with node.session.get(node.url + url(path)) as reply:
        assert (reply.status, reply.content_length) == (200, len(content))
        assert await reply.content.readexactly(MIB) == content[:MIB]
    assert not node.node.store.unnamed.was_given(hashlib.sha256(content).hexdigest())


async def test_a_part_of_it_is_given_as_soon_as_it_is_here(node: Running, hub: FakeHub) -> None:
    """A loader reads the head of a file of weights first."""
    hub.faults["small.safetensors"] = ["stall"]
    head = await node.ask("GET", url("small.safetensors"), headers={"Range": "bytes=0-1048999"})
    assert (head.status, head.body) == (206, SMALL[:1049000])


@pytest.mark.parametrize(("path", "content"), [("small.safetensors", SMALL), ("sub/large.safetensors", LARGE)])
async def test_wrong_leaves_reach_nobody_and_the_end_is_right(
    node: Running, hub: FakeHub, path: str, content: bytes
) -> None:
    hub.faults[path] = ["flip"]
    got = bytearray()
    for _ in range(3):  # as a client does whose connection was closed
        async with node.session.get(node.url + url(path), headers={"Range": f"bytes={len(got)}-"}) as reply:
            assert reply.status in (200, 206)
            if reply.status == 200:
                got.clear()
            while piece := await reply.content.readany():
                got += piece
                assert content.startswith(bytes(got[:64])), "a wrong byte was given"
        if len(got) == len(content):
            break
    assert bytes(got) == content


async def test_all_files_come_back_and_are_the_model_again(node: Running, hub: FakeHub) -> None:
    replies = await asyncio.gather(*(node.ask("GET", url(path)) for path in FILES))
    assert [reply.body for reply in replies] == list(FILES.values())
    root = node.node.models()[0].root
    async with asyncio.timeout(20):  # the last byte leaves before the file is a blob
        while not (await node.ask("GET", f"/api/have/{root}")).json["complete"]:
            pass


async def test_a_shelf_of_nodes_that_is_damaged_is_no_map(cache: Path, node: Running, hub: FakeHub) -> None:
    (car,) = (cache / "hub" / "nodes").iterdir()
    data = bytearray(car.read_bytes())
    data[len(data) // 2] ^= 1
    car.write_bytes(data)
    assert (await node.ask("GET", url("small.safetensors"))).body == SMALL
    assert not car.exists()
