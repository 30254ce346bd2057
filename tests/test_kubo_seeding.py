"""Seeding: one copy on disk, announced only what may be, whatever the import options of the DAG were."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.build import CHUNK_BYTES, file_dag, tree_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import Leaf, ModelPlan
from ipfs_accelerate_node.content.unixfs import file_node
from ipfs_accelerate_node.content.walk import DagWalk
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.kubo.client import KuboClient
from ipfs_accelerate_node.kubo.endpoint import endpoint
from ipfs_accelerate_node.kubo.seeding import FOLDER, NOT_ANNOUNCED, PIN_NAME, Seeded, is_seeded, seed, unseed
from tests.support import kubo as fixtures
from tests.support.kubo import KuboDaemon, KuboFactory, ManagedFactory

managed, kubo_factory, kubo_hub = fixtures.managed, fixtures.kubo_factory, fixtures.kubo_hub
pytestmark = [pytest.mark.kubo, pytest.mark.timeout(60)]

SIZES = {"config.json": 600, "empty": 0, "onnx/model.onnx": CHUNK_BYTES, "weights": 5 * CHUNK_BYTES + 123}


@dataclass(frozen=True)
class Model:
    """A model that is stored: what the node knows of it, and its files."""

    plan: ModelPlan
    nodes: list[tuple[Cid, bytes]]
    paths: dict[Cid, Path]

    @property
    def root(self) -> Cid:
        return self.plan.root

    async def seed(self, client: KuboClient, *, announce: bool = False, brought: bool = False) -> Seeded:
        return await seed(client, self.plan, self.nodes, self.paths, announce=announce, brought=brought)


def content(sizes: dict[str, int], salt: int) -> dict[str, bytes]:
    return {name: random.Random(f"{salt} {name}").randbytes(size) for name, size in sizes.items()}


def stored(cache: Path, files: dict[str, bytes]) -> Model:
    """Imported with our own profile."""
    built, paths = {}, {}
    for name, data in files.items():
        cuts = range(0, max(len(data), 1), CHUNK_BYTES)
        parts = [(at, data[at : at + CHUNK_BYTES]) for at in cuts]
        file = file_dag([Leaf(Cid.of(part), at, len(part)) for at, part in parts])
        built[name] = file
        paths[file.cid] = write(cache / "blobs" / str(file.cid), data)
    tree = tree_dag(built, [])
    return Model(tree.plan, list(tree.nodes), paths)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


async def fetched(cache: Path, client: KuboClient, root: Cid, files: dict[str, bytes]) -> Model:
    """Walked and fetched block by block through Kubo, which so has copies; then stored."""
    walk, nodes = DagWalk(root), []
    while not walk.done:
        for cid in walk.wanted():
            block = await client.block_get(cid, timeout_s=20)
            cid.check(block, "kubo")
            if walk.give(cid, block).node:
                nodes.append((cid, block))
    plan = walk.plan()

    async def leaf(path: str, leaf: Leaf) -> None:
        block = leaf.cid.inline or await client.block_get(leaf.cid, timeout_s=20)
        assert block == leaf.wrap(files[path][leaf.offset : leaf.offset + leaf.length])

    await asyncio.gather(*(leaf(file.path, one) for file in plan.files for one in file.leaves))
    paths = {f.cid: write(cache / "blobs" / str(f.cid.canonical), files[f.path]) for f in plan.files}
    return Model(plan, nodes, paths)


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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


def found_by(daemon: KuboDaemon, cid: Cid) -> list[str]:
    return daemon.cli("routing", "findprovs", "-n", "5", str(cid)).split()


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


def leaf_blocks(model: Model) -> list[tuple[Cid, bytes]]:
    return [
        (leaf.cid, leaf.wrap(model.paths[file.cid].read_bytes()[leaf.offset : leaf.offset + leaf.length]))
        for file in model.plan.files
        for leaf in file.leaves
    ]


# --- what others imported, with options of their own; fetched through Kubo first

V1 = ("--cid-version=1", "--raw-leaves")
REFERENCED: dict[str, tuple[str, ...]] = {
    "Kubo's default with raw leaves": ("--raw-leaves",),
    "chunks of 256 KiB": (*V1, "--chunker=size-262144"),
    "many small chunks, narrow": (*V1, "--chunker=size-4096", "--max-file-links=7"),
    "width 174": (*V1, "--chunker=size-8192", "--max-file-links=174"),
    "buzhash": (*V1, "--chunker=buzhash"),
    "rabin": (*V1, "--chunker=rabin"),
    "trickle": (*V1, "--trickle", "--chunker=size-8192", "--max-file-links=20"),
    "trickle, default": (*V1, "--trickle"),
    "blake2b-256": (*V1, "--hash=blake2b-256"),
    "sha2-512": (*V1, "--hash=sha2-512"),
    "inline": (*V1, "--inline"),
}
SERVED_OVER_HTTP_ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "dag-pb leaves": (("--cid-version=0", "--raw-leaves=false"), "dag-pb blocks"),
    "odd rabin": ((*V1, "--chunker=rabin-20000-30000-50000"), "no rule"),
}
FOREIGN = {"config.json": 20, "empty": 0, "small": 3000, "weights": 3 * CHUNK_BYTES + 5}


def imported(folder: Path, options: tuple[str, ...], origin: KuboDaemon, salt: int) -> tuple[Cid, dict[str, bytes]]:
    files = content(FOREIGN, salt)
    for name, data in files.items():
        write(folder / name, data)
    return Cid.parse(origin.cli("add", "-r", "-Q", *options, folder)), files


@pytest.mark.parametrize("options", REFERENCED.values(), ids=REFERENCED.keys())
async def test_foreign_dags_become_references(
    client: KuboClient, cache: Path, kubo_hub: KuboDaemon, tmp_path: Path, options: tuple[str, ...]
) -> None:
    root, files = imported(tmp_path / "model", options, kubo_hub, salt=len(str(options)))
    model = await fetched(cache, client, root, files)
    grown = disk_bytes(cache / "kubo")
    assert grown > model.plan.size_bytes  # Kubo has a copy now
    assert await model.seed(client, announce=True, brought=True) == Seeded(True, None, announced=True)
    assert await client.complete(root, timeout_s=20)
    # the tree itself is 60 to 120 bytes for each leaf
    tree = sum(len(block) for _, block in model.nodes)
    leaves = sum(len(file.leaves) for file in model.plan.files)
    assert grown - disk_bytes(cache / "kubo") > model.plan.size_bytes - 500 * leaves - 3 * tree - 100_000


@pytest.mark.parametrize(("options", "reason"), SERVED_OVER_HTTP_ONLY.values(), ids=SERVED_OVER_HTTP_ONLY.keys())
async def test_foreign_dags_that_cannot_be_references_are_not_kept_twice(
    client: KuboClient,
    cache: Path,
    kubo_hub: KuboDaemon,
    tmp_path: Path,
    options: tuple[str, ...],
    reason: str,
) -> None:
    root, files = imported(tmp_path / "model", options, kubo_hub, salt=len(str(options)))
    before = disk_bytes(cache / "kubo")
    model = await fetched(cache, client, root, files)
    assert disk_bytes(cache / "kubo") - before > model.plan.size_bytes
    seeded = await model.seed(client, announce=True, brought=True)
    assert (seeded.seeded, seeded.announced) == (False, False)
    assert reason in str(seeded.note)
    assert disk_bytes(cache / "kubo") - before < model.plan.size_bytes * 0.02
    assert found_by(kubo_hub, root) == [kubo_hub.peer_id]


async def test_a_tree_that_kubo_would_not_build_over_leaves_that_it_would(client: KuboClient, cache: Path) -> None:
    """Leaves at two depths, made by another tool: the node blocks are put as they are."""
    model = stored(cache, content({"weights": 3 * CHUNK_BYTES}, salt=11))
    (file,) = model.plan.files
    half = file_dag(file.leaves[:2])
    inner = dict(half.nodes)[half.cid]
    outer, _ = file_node([(half.cid, 2 * CHUNK_BYTES, half.dag_bytes), (file.leaves[2].cid, CHUNK_BYTES, CHUNK_BYTES)])
    root = Cid.of(outer, codec=0x70)
    plan = ModelPlan(root, (type(file)("", root, file.size, file.leaves),))
    odd = Model(plan, [(root, outer), (half.cid, inner)], {root: model.paths[file.cid]})
    assert await odd.seed(client) == Seeded(True)
    assert await client.complete(root, timeout_s=10)


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
            assert found_by(kubo_hub, cid) == []


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
