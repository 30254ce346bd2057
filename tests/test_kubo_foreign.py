"""Seeding what others imported, whatever their options were; Kubo brings it first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.build import CHUNK_BYTES, file_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import ModelPlan
from ipfs_accelerate_node.content.unixfs import file_node
from ipfs_accelerate_node.kubo.client import KuboClient
from ipfs_accelerate_node.kubo.seeding import Seeded
from tests.support import kubo as fixtures
from tests.support.kubo import KuboDaemon, ManagedFactory
from tests.support.kubo_models import Model, content, disk_bytes, fetched, found_by, stored, write

managed, kubo_factory, kubo_hub = fixtures.managed, fixtures.kubo_factory, fixtures.kubo_hub
pytestmark = [pytest.mark.kubo, pytest.mark.timeout(60)]


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
