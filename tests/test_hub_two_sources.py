"""One file from the Hub and from a peer: together, and one after the other when the Hub goes away on the way."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ipfs_accelerate_node.fetch.hub_nearby import merged
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.fetch.jobs import PinJob
from ipfs_accelerate_node.fetch.pins import Wish
from ipfs_accelerate_node.sources.hub_answers import TreeEntry
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store.types import SourceShare
from tests.support.hub import FakeHub
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
WEIGHTS = random.Random(1).randbytes(40 * MIB)
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, ".gitattributes": b"hidden"}
SHOWN = {path: content for path, content in FILES.items() if not path.startswith(".")}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/big", FILES)
        yield fake


@pytest.fixture
async def first(tmp_path: Path, hub: FakeHub) -> AsyncIterator[Running]:
    """A node that has the model from the Hub."""
    (cache := tmp_path / "first").mkdir(mode=0o700)
    async with running(cache, hf_upstream=hub.url) as node:
        assert (await pinned(node, "hf:org/big")).receipt is not None
        hub.seen.clear()
        yield node


async def pinned(node: Running, ref: str, **wish: Any) -> PinJob:
    job = node.node.start_pin(ref, Wish(**wish))
    async for state in node.node.updates(job):
        job = state
    return job


@asynccontextmanager
async def silent_while(hub: FakeHub, first: Running) -> AsyncIterator[str]:
    """The first node, as long as the Hub lives without its map."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def answer(request: web.Request) -> web.StreamResponse:
            if request.path == "/api/maps" and not hub.is_dead:
                return web.Response(status=404)
            kept = {"Range": r} if (r := request.headers.get("Range")) else {}
            async with session.get(first.url + request.path_qs, headers=kept) as reply:
                told = {k: v for k, v in reply.headers.items() if k in ("Content-Type", "Content-Range", "Etag")}
                return web.Response(status=reply.status, body=await reply.read(), headers=told)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def shares(job: PinJob) -> dict[str, int]:
    assert job.receipt is not None, job.error
    return {share.kind: share.bytes for share in job.receipt.sources if share.bytes}


async def test_a_peer_and_the_hub_give_a_file_together(cache: Path, hub: FakeHub, first: Running) -> None:
    async with running(cache, hf_upstream=hub.url, peers=(first.url,)) as node:
        job = await pinned(node, "hf:org/big", name="big")
        given = shares(job)
        assert set(given) == {"hub", "peer"}
        assert job.receipt is not None
        assert [(step.step, step.outcome) for step in job.receipt.chain] == [("here", "absent"), ("map", "used")]
        model = node.node.find("big")
        assert model.root == first.node.find("hf:org/big").root
        commit = hub.repos["org/big"].refs["main"]
        assert node.node.find(f"hf:org/big@{commit}").root == model.root
        assert (model.provenance.kind, model.provenance.hub_commit) == ("hf", commit)
        assert {path: (model.path / path).read_bytes() for path in SHOWN} == SHOWN
        again = await pinned(node, "hf:org/big")
        assert again.receipt is not None
        assert (again.receipt.bytes_fetched, again.receipt.chain[0].outcome) == (0, "used")


async def test_the_hub_dies_at_60_per_cent_and_a_peer_has_the_rest(cache: Path, hub: FakeHub, first: Running) -> None:
    """One file, two sources, one oid: what came from the Hub is kept."""
    hub.budget = len(WEIGHTS) * 6 // 10
    async with silent_while(hub, first) as peer, running(cache, hf_upstream=hub.url, peers=(peer,)) as node:
        job = await pinned(node, "hf:org/big")
        given = shares(job)
        assert len(WEIGHTS) * 5 // 10 <= given["hub"] <= len(WEIGHTS) * 6 // 10 + MIB
        assert given["peer"] <= len(WEIGHTS) - given["hub"] + 8 * MIB  # leaves that broke off come again
        assert job.receipt is not None
        steps = [(step.step, step.outcome) for step in job.receipt.chain]
        assert steps == [("here", "absent"), ("map", "absent"), ("hub", "failed"), ("map", "used")]
        stored = node.node.store.of_oid(hashlib.sha256(WEIGHTS).digest(), len(WEIGHTS))
        assert stored is not None
        assert stored.path.read_bytes() == WEIGHTS
        assert list((cache / "unnamed").iterdir()) == []


async def test_a_client_of_the_endpoint_does_not_notice(cache: Path, hub: FakeHub, first: Running) -> None:
    hub.budget = len(WEIGHTS) * 6 // 10
    async with silent_while(hub, first) as peer, running(cache, hf_upstream=hub.url, peers=(peer,)) as node:
        reply = await node.ask("GET", "/org/big/resolve/main/config.json")
        assert reply.body == FILES["config.json"]
        kept, entry = await _entry(node, "model.safetensors")
        file = await node.node.hub.file(kept, entry, None)
        assert file.path.read_bytes() == WEIGHTS


async def _entry(node: Running, path: str) -> tuple[KeptCommit, TreeEntry]:
    kept = await node.node.hub.commit(HubRepo("org/big"), "main", None)
    entry = kept.file(path)
    assert entry is not None
    return kept, entry


async def test_without_the_hub_a_peers_word_will_do_and_is_marked(cache: Path, hub: FakeHub, first: Running) -> None:
    async with running(cache, hf_upstream=hub.url, hf_offline=True, peers=(first.url,)) as node:
        job = await pinned(node, "hf:org/big")
        assert set(shares(job)) == {"peer"}
        assert job.receipt is not None
        steps = [(step.step, step.outcome) for step in job.receipt.chain]
        assert steps == [("hub", "failed"), ("here", "absent"), ("map", "used")]
        assert "claims: the Hub could not be asked" in job.receipt.chain[-1].reason
        model = node.node.find("hf:org/big")
        assert (model.provenance.hub_commit, "claims" in model.provenance.reference) == (None, True)
        here = await pinned(node, "hf:org/big")
        assert here.receipt is not None
        assert here.receipt.bytes_fetched == 0
    async with running(cache, hf_upstream=hub.url) as node:  # the Hub says what it is: nothing is fetched again
        confirmed = await pinned(node, "hf:org/big")
        assert confirmed.receipt is not None
        assert confirmed.receipt.bytes_fetched == 0
        assert node.node.find("hf:org/big").provenance.hub_commit == hub.repos["org/big"].refs["main"]
    assert not any("/resolve/" in seen.path for seen in hub.seen)


async def test_nobody_has_the_rest(cache: Path, hub: FakeHub) -> None:
    """The error says every step, and the next try goes on where this one ended."""
    hub.budget = len(WEIGHTS) * 6 // 10
    async with running(cache, hf_upstream=hub.url) as node:
        job = await pinned(node, "hf:org/big")
        assert job.error is not None
        steps = [(step["step"], step["outcome"]) for step in job.error["chain"]]  # type: ignore[attr-defined]
        assert steps == [("here", "absent"), ("map", "absent"), ("hub", "failed"), ("map", "absent")]
        hub.budget = None
        shares_now = shares(await pinned(node, "hf:org/big"))
        assert shares_now["hub"] < len(WEIGHTS) // 2


def test_what_a_source_gave_twice_is_one_line() -> None:
    once, more = SourceShare("hub", "hub", 10, 1, 0, 0.5), SourceShare("hub", "hub", 5, 2, 1, 0.25)
    peer = SourceShare("a peer", "peer", 7, 1, 0, 1.0)
    assert merged([once, peer], more) == (SourceShare("hub", "hub", 15, 3, 1, 0.75), peer)
    assert merged([peer], more) == (peer, more)
