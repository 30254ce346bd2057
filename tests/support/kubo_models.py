"""Models for the tests of seeding: files, their DAG, and where a store would keep them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from ipfs_accelerate_node.content.build import CHUNK_BYTES, file_dag, tree_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import Leaf, ModelPlan
from ipfs_accelerate_node.content.walk import DagWalk
from ipfs_accelerate_node.kubo.client import KuboClient
from ipfs_accelerate_node.kubo.seeding import Seeded, seed
from tests.support.kubo import KuboDaemon


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


def leaf_blocks(model: Model) -> list[tuple[Cid, bytes]]:
    return [
        (leaf.cid, leaf.wrap(model.paths[file.cid].read_bytes()[leaf.offset : leaf.offset + leaf.length]))
        for file in model.plan.files
        for leaf in file.leaves
    ]


def found_by(daemon: KuboDaemon, cid: Cid) -> list[str]:
    return daemon.cli("routing", "findprovs", "-n", "5", str(cid)).split()
