"""A map that is published is found by who looks for the commit, over real Kubo daemons and without any URL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.records.hub_map import map_links, open_map
from ipfs_accelerate_node.records.rendezvous import map_meeting
from tests.support.hub import FakeHub
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess
from tests.support.tunnels import STREAMS, await_door, way_to

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(150)]

FILES = {"config.json": b'{"a": 1}', "sub/weights.bin": bytes(range(256)) * 8_000, ".gitattributes": b"hidden"}
DHT = {**STREAMS, "Routing.Type": "dhtserver"}


@asynccontextmanager
async def node(folder: Path, name: str, router: KuboDaemon, hub: FakeHub, **env: str) -> AsyncIterator[NodeProcess]:
    (cache := folder / name / "cache").mkdir(parents=True, mode=0o700)
    settings = {"HF_UPSTREAM": hub.url, **env}
    process = NodeProcess(
        cache,
        *("--kubo", "managed", "--bootstrap", router.addr),
        env={f"IPFS_ACCELERATE_NODE_{key}": value for key, value in settings.items()},
    )
    await asyncio.to_thread(process.start)
    try:
        await asyncio.to_thread(process.wait_for_kubo)
        yield process
    finally:
        await asyncio.to_thread(process.stop)


async def said(of: NodeProcess, *arguments: str) -> Any:
    return await asyncio.to_thread(of.json, *arguments)


async def test_found_by_the_commit_alone(tmp_path: Path) -> None:
    async with FakeHub(one_origin=True) as hub:
        sha = hub.repo("org/open", FILES).refs["main"]
        ref = f"hf:org/open@{sha}"
        with KuboDaemon(tmp_path / "router" / "repo", config=DHT) as router:
            async with node(tmp_path, "a", router, hub) as first:
                pinned = await said(first, "pin", "hf:org/open")
                published = await said(first, "publish", ref)
                assert (published["published"], published["note"]) == (True, None)
                signer = published["signer"]
                await asyncio.to_thread(lambda: await_door(way_to(router, signer)))
                _check_published(router, published, sha)
                before = len(hub.seen)
                async with node(tmp_path, "b", router, hub, HF_OFFLINE="true") as second:
                    got = await said(second, "pin", ref)
                    assert got["root"] == pinned["root"] == published["map"]["root"]
                    (used,) = [step for step in got["chain"] if step["outcome"] == "used"]
                    assert used["step"] == "map"
                    assert f"as peer:{signer} claims: the Hub could not be asked" in used["reason"]
                    audit = await asyncio.to_thread(
                        lambda: second.cli("audit", ref, "--map", published["envelope_cid"], "--json", check=False)
                    )
                    assert (audit.returncode, json.loads(audit.stdout)["code"]) == (5, "offline")
                assert len(hub.seen) == before
                async with node(tmp_path, "c", router, hub, PEERS=signer) as third:
                    checked = await said(third, "audit", ref, "--peer", signer, "--fetch")
                    assert (checked["outcome"], checked["signer"], checked["tree"]) == ("confirmed", signer, "hub")
                    again = await said(third, "audit", ref, "--map", published["envelope_cid"])
                    assert (again["outcome"], again["signer"]) == ("confirmed", signer)
                    assert [seen for seen in hub.seen[before:] if "/resolve/" in seen.path] == []
                before = len(hub.seen)
                async with node(tmp_path, "d", router, hub, PEERS=signer, HF_OFFLINE="true") as fourth:
                    got = await said(fourth, "pin", "hf:org/open")  # what main is says the peer that was named
                    assert got["root"] == pinned["root"]
                    assert f"as peer:{signer} claims" in got["chain"][-1]["reason"]
                assert len(hub.seen) == before


async def test_published_with_the_pin(tmp_path: Path) -> None:
    """What the receipt names is what anybody gets by that CID."""
    async with FakeHub(one_origin=True) as hub:
        sha = hub.repo("org/open", FILES).refs["main"]
        with KuboDaemon(tmp_path / "router" / "repo", config=DHT) as router:
            async with node(tmp_path, "a", router, hub) as first:
                pinned = await said(first, "pin", "hf:org/open", "--publish-map")
                published = await said(first, "publish", f"hf:org/open@{sha}")
                assert pinned["map_envelope"] == published["envelope_cid"]
                assert published["map"]["root"] == pinned["root"]
                await asyncio.to_thread(lambda: await_door(way_to(router, published["signer"])))
                _check_published(router, published, sha)


def _check_published(anyone: KuboDaemon, published: dict[str, Any], sha: str) -> None:
    """Every block is to be had by CID, and the meeting place is provided."""
    meeting, block = map_meeting("org/open", sha)
    assert published["meeting"] == str(meeting)
    assert anyone.block(str(meeting)) == block
    envelope = anyone.block(published["envelope_cid"])
    (record,) = map_links(envelope)
    assert published["record_cid"] == str(record)
    opened = open_map(envelope, {record: anyone.block(str(record))}, now=None)
    assert (opened.map.commit, opened.signer) == (sha, published["signer"])
    assert opened.envelope_cid == Cid.parse(published["envelope_cid"])
    assert published["signer"] in anyone.cli("routing", "findprovs", str(meeting)).splitlines()
