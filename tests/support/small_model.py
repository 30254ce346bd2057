"""Models of a few KiB for tests of what keeps them, and the way they get into a store."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ipfs_accelerate_node.content.build import Profile, directory_dag, file_dag, tree_dag
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.content.dagpb import varint
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.content.unixfs import Entry, file_node
from ipfs_accelerate_node.content.walk import DagWalk
from ipfs_accelerate_node.store import PartialFile, Provenance, Reservation, Store, StoredModel

CHUNK = 1024
FROM_CID = Provenance("cid", "ipfs://test", "2026-01-02T03:04:05Z")


@dataclass(frozen=True)
class SmallModel:
    """blocks: every leaf and node block. files: path -> bytes."""

    plan: ModelPlan
    nodes: tuple[tuple[Cid, bytes], ...]
    blocks: dict[Cid, bytes]
    files: dict[str, bytes]

    @property
    def root(self) -> Cid:
        return self.plan.root


def small_model(files: Mapping[str, bytes], directories: tuple[str, ...] = ()) -> SmallModel:
    """Raw leaves of CHUNK bytes, four links a node."""
    blocks: dict[Cid, bytes] = {}
    built = {}
    for path, data in files.items():
        leaves = []
        for at in range(0, len(data), CHUNK):
            part = data[at : at + CHUNK]
            leaves.append(Leaf(Cid.of(part), at, len(part)))
            blocks[leaves[-1].cid] = part
        built[path] = file_dag(leaves, Profile(CHUNK, 4))
        for leaf in built[path].leaves:
            blocks.setdefault(leaf.cid, b"")
    tree = tree_dag(built, directories)
    blocks.update(tree.nodes)
    return SmallModel(tree.plan, tree.nodes, blocks, dict(files))


def random_model(seed: int, *, size: int = 5 * CHUNK + 7) -> SmallModel:
    """Two files: weights of that size, and a config in a directory."""
    rng = random.Random(seed)
    return small_model({"weights.bin": rng.randbytes(size), "sub/config.json": b'{"seed": %d}' % seed})


def foreign_model(seed: int) -> SmallModel:
    """As `ipfs add` without options makes it: version 0, file bytes wrapped in dag-pb leaves."""
    data = random.Random(seed).randbytes(2 * CHUNK + 100)
    parts, blocks = [], {}
    for at in range(0, len(data), CHUNK):
        part = data[at : at + CHUNK]
        block = wrapped(part)
        cid = Cid(0, DAG_PB, Cid.of(block).multihash)
        blocks[cid.canonical] = block
        parts.append((cid, len(part), len(block)))
    block, _ = file_node(parts)
    file = Cid(0, DAG_PB, Cid.of(block).multihash)
    blocks[file.canonical] = block
    tiny = wrapped(b"tiny")
    tiny_cid = Cid(0, DAG_PB, Cid.of(tiny).multihash)
    blocks[tiny_cid.canonical] = tiny
    directory = directory_dag([Entry("big.bin", file, 1), Entry("tiny.txt", tiny_cid, 1)])
    blocks.update(directory.nodes)
    walk, nodes = DagWalk(directory.cid), []
    while not walk.done:
        for cid in walk.wanted():
            if walk.give(cid, blocks[cid.canonical]).node:
                nodes.append((cid, blocks[cid.canonical]))
    return SmallModel(walk.plan(), tuple(nodes), blocks, {"big.bin": data, "tiny.txt": b"tiny"})


def wrapped(payload: bytes) -> bytes:
    """A dag-pb leaf: PBNode{Data: UnixFS{Type: File, Data: payload, filesize}}."""
    size = varint(len(payload))
    message = b"\x08\x02\x12" + size + payload + b"\x18" + size
    return b"\x0a" + varint(len(message)) + message


def whole_part(store: Store, model: SmallModel, file: FilePlan) -> PartialFile:
    """The file's part with every leaf written, neither synced nor a blob."""
    part = store.partial(file.cid, file.size)
    for leaf in part.missing(file.leaves):
        block = model.blocks[leaf.cid.canonical]
        part.write(leaf, block[len(leaf.prefix) : len(block) - len(leaf.suffix)])
    return part


def bring_files(
    store: Store, model: SmallModel, reservation: Reservation | None = None, paths: Collection[str] | None = None
) -> None:
    """Writes every file (or those at paths) that is missing, leaf by leaf, and makes it a blob."""
    for file in model.plan.files:
        if store.file(file.cid) is not None or (paths is not None and file.path not in paths):
            continue
        with store.partial(file.cid, file.size, reservation=reservation) as part:
            for leaf in part.missing(file.leaves):
                block = model.blocks[leaf.cid.canonical]
                part.write(leaf, block[len(leaf.prefix) : len(block) - len(leaf.suffix)])
            part.sync()
            part.commit(file)


def bring(
    store: Store,
    model: SmallModel,
    *,
    name: str | None = None,
    pinned: bool = True,
    public: bool = True,
    paths: Collection[str] | None = None,
) -> StoredModel:
    """The whole way of a fetch. paths: of those files alone."""
    label = {"name": name, "pinned": pinned, "public": public, "paths": paths}
    size = sum(file.size for file in model.plan.files if paths is None or file.path in paths)
    with store.reserve(size) as reservation:
        bring_files(store, model, reservation, paths)
        return store.commit(model.plan, model.nodes, provenance=FROM_CID, **label)  # type: ignore[arg-type]
