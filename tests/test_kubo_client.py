"""The RPC client against a real daemon."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator

import pytest

from ipfs_accelerate_node.content.build import directory_dag
from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import IntegrityError, SourceUnavailable, StorageError, Unavailable
from ipfs_accelerate_node.kubo.client import KuboClient
from ipfs_accelerate_node.kubo.endpoint import Endpoint, endpoint
from tests.support import kubo as fixtures
from tests.support.kubo import KuboDaemon, KuboFactory

kubo_factory = fixtures.kubo_factory
pytestmark = pytest.mark.kubo

DIRECTORY = directory_dag([]).nodes[0]


@pytest.fixture(scope="module")
def daemon(kubo_factory: KuboFactory) -> KuboDaemon:
    return kubo_factory(config={"Experimental.FilestoreEnabled": True})


@pytest.fixture
async def client(daemon: KuboDaemon) -> AsyncIterator[KuboClient]:
    client = await KuboClient.open(endpoint(daemon.api_url), managed=False)
    yield client
    await client.aclose()


async def test_who_it_is(client: KuboClient, daemon: KuboDaemon) -> None:
    assert client.peer_id == daemon.peer_id
    assert client.version == daemon.cli("version", "--number")
    assert daemon.addr in await client.addresses()
    assert (await client.repo_stat())["RepoPath"] == str(daemon.repo)


@pytest.mark.parametrize("hash_code", [0x12, 0x13, 0x16, 0x14, 0xB220, 0xB240, 0xB260])
async def test_blocks_of_every_hash_go_in_and_out(client: KuboClient, hash_code: int) -> None:
    data = random.Random(hash_code).randbytes(1000)
    cid = Cid.of(data, hash_code=hash_code)
    assert not await client.has_block(cid)
    await client.block_put(cid, data)
    assert await client.has_block(cid)
    assert await client.block_get(cid, timeout_s=5) == data
    assert await client.block_rm([cid, cid]) == []
    assert not await client.has_block(cid)


async def test_a_record_has_the_cid_that_was_computed_here(client: KuboClient, daemon: KuboDaemon) -> None:
    block = bytes.fromhex("a16161182a")  # {"a": 42}
    cid = Cid.of(block, codec=DAG_CBOR)
    await client.block_put(cid, block)
    assert await client.dag_get(cid) == {"a": 42}
    assert daemon.cli("dag", "get", str(cid)) == '{"a":42}'


async def test_a_block_under_the_wrong_cid_is_found_out(client: KuboClient) -> None:
    with pytest.raises(IntegrityError):
        await client.block_put(Cid.of(b"this"), b"that")


async def test_an_identity_cid_needs_no_block(client: KuboClient) -> None:
    cid = Cid.of(b"inline", hash_code=0)
    await client.block_put(cid, b"inline")
    assert await client.block_rm([cid]) == []


async def test_a_block_that_nobody_has(client: KuboClient) -> None:
    cid = Cid.of(os.urandom(20))
    with pytest.raises(SourceUnavailable) as absent:
        await client.block_get(cid, timeout_s=5, offline=True)
    assert (absent.value.code, absent.value.source) == ("not_found", "kubo")
    with pytest.raises(SourceUnavailable) as waited:
        await client.block_get(cid, timeout_s=0.3)
    assert waited.value.code == "stalled"
    assert waited.value.detail["cid"] == str(cid)


async def test_a_pinned_block_is_not_removed(client: KuboClient) -> None:
    data = os.urandom(100)
    cid, others = Cid.of(data), [Cid.of(os.urandom(8)) for _ in range(600)]
    await client.block_put(cid, data)
    await client.pin_add(cid, name="mine")
    assert await client.pin_name(cid) == "mine"
    assert await client.block_rm([*others, cid]) == [cid]
    assert await client.pin_rm(cid)
    assert not await client.pin_rm(cid)
    assert not await client.pinned(cid)
    assert await client.block_rm([cid]) == []


@pytest.mark.timeout(60)
async def test_garbage_collection_in_a_loop_never_takes_what_is_put_pinned(
    client: KuboClient, daemon: KuboDaemon
) -> None:
    done = asyncio.Event()

    async def collect() -> int:
        rounds = 0
        while not done.is_set() or not rounds:
            await asyncio.to_thread(daemon.cli, "repo", "gc", "-q")
            rounds += 1
        return rounds

    collecting = asyncio.create_task(collect())
    blocks = {Cid.of(data): data for data in (os.urandom(50) for _ in range(30))}
    for cid, data in blocks.items():
        await client.block_put(cid, data, pin=True)
    done.set()
    assert await collecting
    for cid, data in blocks.items():
        assert await client.pinned(cid)
        assert await client.block_get(cid, timeout_s=5, offline=True) == data


async def test_bit_rot_in_kubos_own_repo_is_seen_by_who_checks(client: KuboClient, daemon: KuboDaemon) -> None:
    data = os.urandom(5000)
    cid = Cid.of(data)
    await client.block_put(cid, data)
    (place,) = [p for p in (daemon.repo / "blocks").rglob("*.data") if p.read_bytes() == data]
    place.chmod(0o600)
    place.write_bytes(b"rotten" + data[6:])
    with pytest.raises((IntegrityError, SourceUnavailable)):
        cid.check(await client.block_get(cid, timeout_s=5, offline=True), "kubo")


async def test_files_tree_is_idempotent(client: KuboClient, daemon: KuboDaemon) -> None:
    await client.block_put(*DIRECTORY)
    assert await client.files_cid("/some/where") is None
    for _ in range(2):
        await client.files_cp(DIRECTORY[0], "/some/where")
        assert await client.files_cid("/some/where") == DIRECTORY[0]
    assert daemon.cli("files", "stat", "--hash", "/some/where") == str(DIRECTORY[0])
    for _ in range(2):
        await client.files_rm("/some/where")
    assert daemon.cli("files", "ls", "/some") == ""


async def test_keys_and_names(client: KuboClient, daemon: KuboDaemon) -> None:
    await client.block_put(*DIRECTORY)
    key = await client.key_import("node", bytes(32))
    assert await client.key_import("node", bytes(32)) == key
    assert key in daemon.cli("key", "list", "-l", "--ipns-base=base36")
    assert await client.name_publish("node", DIRECTORY[0]) == key
    assert daemon.cli("name", "resolve", "--offline", key) == f"/ipfs/{DIRECTORY[0]}"


async def test_a_reference_to_a_file(client: KuboClient, daemon: KuboDaemon) -> None:
    folder = daemon.repo.parent / "blöbs %41"  # a path that a header cannot carry as it is
    folder.mkdir()
    (path := folder / "weights").write_bytes(random.Random(1).randbytes(700_000))
    options = (("cid-version", "1"), ("raw-leaves", "true"), ("chunker", "size-262144"))
    root = await client.add_nocopy(path, options)
    assert str(root) == daemon.cli("add", "-Q", "-n", "--cid-version=1", "--chunker=size-262144", path)
    assert str(path.relative_to(daemon.repo.parent)) in daemon.cli("filestore", "ls")
    with pytest.raises(StorageError):
        await client.add_nocopy(folder / "absent", options)


async def test_nobody_answers() -> None:
    with pytest.raises(Unavailable) as refused:
        await KuboClient.open(Endpoint("http://127.0.0.1:1"), managed=False)
    assert refused.value.code == "kubo_unavailable"


async def test_providing_without_peers_is_an_error_in_kubos_words(client: KuboClient) -> None:
    with pytest.raises(Unavailable, match="no connected peers") as refused:
        await client.provide(DIRECTORY[0])
    assert refused.value.code == "kubo_error"


async def test_a_closed_client_says_so(daemon: KuboDaemon) -> None:
    client = await KuboClient.open(endpoint(daemon.api_url), managed=False)
    await client.has_block(DIRECTORY[0])
    await client.aclose()
    for call in (client.id(), client.provide(DIRECTORY[0]), client.has_block(DIRECTORY[0])):
        with pytest.raises(Unavailable, match="restarted"):
            await call
