"""A Kubo that is still starting delays nobody who does not need it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NoSource, SourceUnavailable, Unavailable
from ipfs_accelerate_node.fetch import Fetcher
from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.sources import LateKubo, PeerSource
from ipfs_accelerate_node.store import Store
from tests.support.gateway import FakeGateway, small_model

MODEL = small_model({"weights": bytes(range(200)), "config.json": b"{}"})


class Starting:
    """Counts who waits for it; will not be ready."""

    def __init__(self) -> None:
        self.waits = 0

    async def __call__(self) -> KuboClient:
        self.waits += 1
        await asyncio.sleep(0)
        raise Unavailable("Kubo is starting", code="kubo_unavailable")


async def never() -> KuboClient:
    await asyncio.Event().wait()
    raise AssertionError


async def test_it_is_not_waited_for_while_others_deliver(tmp_path: Path) -> None:
    """It is asked with the others, and the fetch ends without its answer."""
    async with FakeGateway(MODEL.blocks) as gateway:
        gateway.publish(MODEL)
        gateway.held[MODEL.root] = {"root": str(MODEL.root), "complete": True, "files": []}
        peer = PeerSource(gateway.url)
        with Store.open(tmp_path / "cache") as store:
            fetched = await Fetcher(store).fetch(MODEL.root, [peer, LateKubo(never)], reference="x")
        await peer.aclose()
    assert {share.kind for share in fetched.sources if share.bytes} == {"peer"}
    assert fetched.bytes_fetched == fetched.bytes_total


async def test_it_is_waited_for_once_by_all_who_ask(tmp_path: Path) -> None:
    starting = Starting()
    source = LateKubo(starting)
    asked = await asyncio.gather(*(source.read_block(Cid.of(bytes([n]))) for n in range(9)), return_exceptions=True)
    assert all(isinstance(e, SourceUnavailable) and e.code == "kubo_unavailable" for e in asked)
    assert starting.waits == 1
    with Store.open(tmp_path / "cache") as store, pytest.raises(NoSource) as none:
        await Fetcher(store).fetch(MODEL.root, [source], reference="x")
    assert none.value.code == "kubo_unavailable"
    assert starting.waits == 1
