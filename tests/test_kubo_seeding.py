"""Seeding: one copy on disk, and announced only what may be."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.build import CHUNK_BYTES
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.kubo.client import KuboClient
from ipfs_accelerate_node.kubo.endpoint import endpoint
from ipfs_accelerate_node.kubo.seeding import FOLDER, NOT_ANNOUNCED, PIN_NAME, Seeded, is_seeded, seed, unseed
from tests.support import kubo as fixtures
from tests.support.kubo import KuboDaemon, KuboFactory, ManagedFactory
from tests.support.kubo_models import content, disk_bytes, found_by, leaf_blocks, stored

managed, kubo_factory, kubo_hub = fixtures.managed, fixtures.kubo_factory, fixtures.kubo_hub
pytestmark = [pytest.mark.kubo, pytest.mark.timeout(60)]

SIZES = {"config.json": 600, "empty": 0, "onnx/model.onnx": CHUNK_BYTES, "weights": 5 * CHUNK_BYTES + 123}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
async def client(managed: ManagedFactory, kubo_hub: KuboDaemon) -> AsyncIterator[KuboClient]:
    """Of a managed daemon that knows the hub."""
    async with managed(bootstrap=(kubo_hub.addr,), features=["tunnel"]) as service:
        ready = await service.wait_ready(20)
        await ready.connect(kubo_hub.addr)
        yield ready


@pytest.fixture(scope="module")
def seeker(kubo_factory: KuboFactory, kubo_hub: KuboDaemon) -> KuboDaemon:
    """Another daemon that knows the hub and nobody else."""
    daemon = kubo_factory(bootstrap=[kubo_hub.addr])
    daemon.cli("swarm", "connect", kubo_hub.addr)
    return daemon


async def test_an_announced_model_is_found_and_fetched_by_a_stranger(
    client: KuboClient, cache: Path, seeker: KuboDaemon, tmp_path: Path
) -> None:
    files = content({name: size for name, size in SIZES.items() if size}, salt=1)  # Kubo never sends an empty block
    model = stored(cache, files)
    assert await model.seed(client, announce=True) == Seeded(True, None, announced=True)
    assert found_by(seeker, model.root) == [client.peer_id]
    finder = await KuboClient.open(endpoint(seeker.api_url), managed=False)
    assert await finder.providers(model.root, timeout_s=10) == [client.peer_id]
    for cid, block in model.nodes:
        assert await finder.block_get(cid, timeout_s=20) == block
    await finder.aclose()
    seeker.cli("get", "-o", tmp_path / "got", str(model.root))
    assert {name: (tmp_path / "got" / name).read_bytes() for name in files} == files


async def test_what_is_not_announced_is_found_by_nobody_yet_served_to_who_asks(
    client: KuboClient, cache: Path, seeker: KuboDaemon, kubo_hub: KuboDaemon
) -> None:
    files = content(SIZES, salt=2)
    private, control = stored(cache, files), stored(cache, content({"f": 10}, salt=3))
    assert await private.seed(client) == Seeded(True, None, announced=False)
    assert (await control.seed(client, announce=True)).announced
    assert found_by(seeker, control.root) == [client.peer_id]  # so the search works
    everything = [private.root, *(f.cid for f in private.plan.files), *(cid for cid, _ in private.nodes)]
    for cid in everything:
        assert found_by(seeker, cid) == []
    assert not await client.pinned(private.root)
    (address,) = await client.addresses()
    seeker.cli("swarm", "connect", address)
    fetched = subprocess.check_output(  # bytes, which `cli` does not return
        [fixtures.kubo_binary(), "cat", f"/ipfs/{private.root}/weights"],
        env={"IPFS_PATH": str(seeker.repo), "IPFS_TELEMETRY": "off"},
        timeout=30,
    )
    assert fetched == files["weights"]


async def test_the_repo_holds_references_and_no_second_copy(client: KuboClient, cache: Path) -> None:
    before = disk_bytes(cache / "kubo")
    model = stored(cache, content({"weights": 32 * CHUNK_BYTES}, salt=4))
    assert (await model.seed(client)).seeded
    assert await client.complete(model.root, timeout_s=20)
    assert disk_bytes(cache / "kubo") - before < model.plan.size_bytes * 0.02
    assert (await model.seed(client)) == Seeded(True)  # again: nothing changes


async def test_private_then_announced_then_taken_back(client: KuboClient, cache: Path, seeker: KuboDaemon) -> None:
    model = stored(cache, content(SIZES, salt=5))
    await model.seed(client)
    assert (await model.seed(client, announce=True)).announced
    assert await client.pin_name(model.root) == PIN_NAME
    assert found_by(seeker, model.root) == [client.peer_id]
    await unseed(client, model.plan, model.nodes)
    assert not await client.pinned(model.root)
    for cid in [*(leaf.cid for file in model.plan.files for leaf in file.leaves), *dict(model.nodes)]:
        assert not await client.has_block(cid)
    await unseed(client, model.plan, model.nodes)  # idempotent


async def test_taking_back_leaves_what_another_model_shares(client: KuboClient, cache: Path) -> None:
    shared = content({"tokenizer.json": 2 * CHUNK_BYTES}, salt=6)
    one = stored(cache, shared | content({"a": 100}, salt=7))
    two = stored(cache, shared | content({"b": 100}, salt=8))
    for model in (one, two):
        await model.seed(client)
    keep = {file.cid.canonical for file in two.plan.files} | {cid.canonical for cid, _ in two.nodes}
    await unseed(client, one.plan, one.nodes, keep=keep)
    assert not await client.complete(one.root, timeout_s=10)
    assert await client.complete(two.root, timeout_s=10)


async def test_dropping_what_kubo_brought_leaves_the_references_of_another_model(
    client: KuboClient, cache: Path
) -> None:
    shared = content({"tokenizer.json": 2 * CHUNK_BYTES}, salt=18)
    one = stored(cache, shared)
    two = stored(cache, shared | content({"b": CHUNK_BYTES}, salt=19))
    await one.seed(client)
    (brought,) = [f.leaves[0] for f in two.plan.files if f.path == "b"]
    await client.block_put(brought.cid, (cache / "blobs" / str(brought.cid)).read_bytes())
    assert await client.references([leaf.cid for f in two.plan.files for leaf in f.leaves]) == {
        leaf.cid for leaf in one.plan.files[0].leaves
    }
    missing = {cid: path.with_name("absent") for cid, path in two.paths.items()}
    failed = await seed(client, two.plan, two.nodes, missing, announce=False, brought=True)
    assert not failed.seeded
    assert not await client.has_block(brought.cid)
    assert await client.complete(one.root, timeout_s=10)


async def test_whether_it_is_seeded(client: KuboClient, cache: Path) -> None:
    model = stored(cache, content({"f": 10}, salt=20))
    states = []
    for announce in (None, False, True):
        if announce is not None:
            await model.seed(client, announce=announce)
        states.append([await is_seeded(client, model.root, announced=wanted) for wanted in (False, True)])
    assert states == [[False, False], [True, False], [True, True]]


async def test_a_private_model_survives_garbage_collection(cache: Path, managed: ManagedFactory) -> None:
    model = stored(cache, content(SIZES, salt=9))
    async with managed() as service:
        client = await service.wait_ready(20)
        await model.seed(client)
        stray = os.urandom(100)
        await client.block_put(Cid.of(stray), stray)
    environment = {"IPFS_PATH": str(cache / "kubo"), "IPFS_TELEMETRY": "off"}
    for command in (["repo", "gc", "-q"], ["files", "ls", FOLDER]):
        listed = subprocess.check_output([fixtures.kubo_binary(), "--offline", *command], env=environment, text=True)
    assert listed.split() == [str(model.root)]
    async with managed() as service:
        client = await service.wait_ready(20)
        assert await client.complete(model.root, timeout_s=10)
        assert not await client.has_block(Cid.of(stray))


async def test_a_pin_of_the_users_own_is_left_alone(kubo_factory: KuboFactory) -> None:
    daemon = kubo_factory(config={"Experimental.FilestoreEnabled": True})
    client = await KuboClient.open(endpoint(daemon.api_url), managed=False)
    model = stored(daemon.repo.parent, content({"weights": CHUNK_BYTES + 1}, salt=10))
    for cid, block in [*model.nodes, *leaf_blocks(model)]:
        await client.block_put(cid, block)
    await client.pin_add(model.root, name="mine")
    seeded = await model.seed(client, announce=True, brought=True)
    assert seeded.seeded
    assert "2 blocks stay as copies" in str(seeded.note)
    assert await client.pin_name(model.root) == "mine"
    await unseed(client, model.plan, model.nodes)
    assert await client.pin_name(model.root) == "mine"
    assert await client.complete(model.root, timeout_s=10)
    await client.aclose()


# --- daemons of others


async def test_an_external_daemon_gets_only_what_may_be_announced(
    kubo_factory: KuboFactory, kubo_hub: KuboDaemon
) -> None:
    daemon = kubo_factory(config={"Experimental.FilestoreEnabled": True}, bootstrap=[kubo_hub.addr])
    daemon.cli("swarm", "connect", kubo_hub.addr)
    client = await KuboClient.open(endpoint(daemon.api_url), managed=False)
    model = stored(daemon.repo.parent, content({"weights": CHUNK_BYTES + 1}, salt=12))
    blocks = leaf_blocks(model)
    for cid, block in blocks:
        await client.block_put(cid, block)
    assert await model.seed(client, brought=True) == Seeded(False, NOT_ANNOUNCED)
    assert not any([await client.has_block(cid) for cid, _ in blocks])
    assert await model.seed(client, announce=True) == Seeded(True, None, announced=True)
    assert found_by(kubo_hub, model.root) == [daemon.peer_id]
    assert len(daemon.cli("filestore", "ls").splitlines()) == 2
    await client.aclose()


async def test_an_external_daemon_that_does_not_allow_references(kubo_factory: KuboFactory, tmp_path: Path) -> None:
    off, elsewhere = kubo_factory(), kubo_factory(config={"Experimental.FilestoreEnabled": True})
    for daemon, cache, reason in (
        (off, off.repo.parent, "has its filestore off"),
        (elsewhere, tmp_path, "below the parent folder of its repo"),
    ):
        client = await KuboClient.open(endpoint(daemon.api_url), managed=False)
        model = stored(cache, content({"weights": CHUNK_BYTES + 1}, salt=13))
        seeded = await model.seed(client, announce=True)
        assert (seeded.seeded, seeded.announced) == (False, False)
        assert reason in str(seeded.note)
        await client.aclose()


async def test_what_could_not_be_announced_is_when_peers_come_and_the_rest_stays_private(
    cache: Path, managed: ManagedFactory, kubo_hub: KuboDaemon
) -> None:
    public, private = stored(cache, content({"f": 10}, salt=14)), stored(cache, content(SIZES, salt=21))
    async with managed() as service:
        client = await service.wait_ready(20)
        seeded = await public.seed(client, announce=True)
        await private.seed(client)
    assert (seeded.seeded, seeded.announced) == (True, False)
    assert "no connected peers" in str(seeded.note)
    async with managed(features=["tunnel"]) as service:
        client = await service.wait_ready(20)
        await client.connect(kubo_hub.addr)
        while not found_by(kubo_hub, public.root):  # the test's timeout ends this
            pass
        for cid in [*(f.cid for f in private.plan.files), *(cid for cid, _ in private.nodes)]:
            assert client.peer_id not in found_by(kubo_hub, cid)  # the hub itself announces the empty block


async def test_a_daemon_that_goes_away_is_a_note(cache: Path, managed: ManagedFactory) -> None:
    async with managed() as service:
        client = await service.wait_ready(20)
    seeded = await stored(cache, content({"f": 10}, salt=15)).seed(client)
    assert not seeded.seeded
    assert "restarted" in str(seeded.note)


async def test_a_damaged_reference_is_not_served(client: KuboClient, cache: Path) -> None:
    """The filestore hashes what it reads: bit rot in our file is a missing block to others, never wrong bytes."""
    model = stored(cache, content({"weights": 2 * CHUNK_BYTES}, salt=16))
    await model.seed(client)
    (file,) = model.plan.files
    path = model.paths[file.cid]
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceUnavailable):
        await client.block_get(file.leaves[0].cid, timeout_s=5, offline=True)
    assert await client.block_get(file.leaves[1].cid, timeout_s=5, offline=True)


async def test_two_seedings_at_once(client: KuboClient, cache: Path) -> None:
    model = stored(cache, content(SIZES, salt=17))
    both = await asyncio.gather(model.seed(client), model.seed(client, announce=True))
    assert [result.seeded for result in both] == [True, True]
    assert await client.complete(model.root, timeout_s=10)
