"""Blocks for tests: an offline Kubo as the oracle, a walk driven from a dict of blocks, and odd blocks by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.content.dagpb import Link, encode, varint
from ipfs_accelerate_node.content.plan import Leaf, ModelPlan
from ipfs_accelerate_node.content.walk import DagWalk, LeafPayload
from tests.support.kubo import kubo_binary

Blocks = dict[Cid, bytes]
DIRECTORY, FILE = 1, 2  # UnixFS node types


class OfflineKubo:
    """A Kubo repository without a daemon, under the profile unixfs-v1-2025 unless told otherwise."""

    def __init__(self, repo: Path, *, profile: str | None = "unixfs-v1-2025") -> None:
        self._binary = str(kubo_binary())
        self._environment = {"IPFS_PATH": str(repo), "IPFS_TELEMETRY": "off", "HOME": str(repo)}
        self.run("init", "--empty-repo", "--profile=test")
        if profile is not None:
            self.run("config", "profile", "apply", profile)

    def run(self, *arguments: str) -> bytes:
        done = subprocess.run(
            [self._binary, *arguments], env=self._environment, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def add(self, path: Path, *flags: str, only_hash: bool = False) -> Cid:
        """The root that `ipfs add` gives for a file or a directory tree."""
        extra = ("--only-hash",) if only_hash else ()
        return Cid.parse(self.run("add", "-r", "-Q", "--offline", *extra, *flags, str(path)).decode().strip())

    def blocks(self, root: Cid) -> Blocks:
        """Every block below root, by canonical CID; without those that are inline in theirs."""
        archive = self.run("dag", "export", "--offline", "--progress=false", str(root))
        return {cid: block for cid, block in read_archive(archive) if cid.inline is None}


def read_archive(archive: bytes) -> Iterable[tuple[Cid, bytes]]:
    """The blocks of a CARv1, read with the simplest possible code and checked against their CIDs."""
    at = 0
    while at < len(archive):
        length, start = _varint(archive, at)
        end = start + length
        if at:  # the first section is the header
            cid, block_at = Cid.decode_prefix(archive, start)
            block = archive[block_at:end]
            cid.check(block, "the archive")
            yield cid.canonical, block
        at = end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


class Walked:
    """A finished walk. files: bytes by path, put together from payloads and from the raw leaves' blocks."""

    def __init__(self, walk: DagWalk, payloads: Iterable[LeafPayload], blocks: Mapping[Cid, bytes]) -> None:
        self.walk = walk
        self.plan: ModelPlan = walk.plan()
        self.payloads = list(payloads)
        came = {(item.file.cid, item.leaf.offset): item.payload for item in self.payloads if item.payload}
        self.files: dict[str, bytes] = {}
        for file in self.plan.files:
            parts = []
            for leaf in file.leaves:
                payload = came.get((file.cid, leaf.offset)) if leaf.length else b""
                if payload is None:
                    payload = leaf.unwrap(block_of(blocks, leaf.cid))
                assert len(payload) == leaf.length
                assert leaf.cid.matches(leaf.wrap(payload)), "a leaf re-makes its block"
                parts.append(payload)
            self.files[file.path] = b"".join(parts)


def block_of(blocks: Mapping[Cid, bytes], cid: Cid) -> bytes:
    inline = cid.inline
    return blocks[cid.canonical] if inline is None else inline


def walk(
    root: Cid,
    blocks: Mapping[Cid, bytes],
    *,
    pick: Callable[[list[Cid]], Cid] = lambda wanted: wanted[0],
    limit: int = 64,
    **bounds: Any,
) -> Walked:
    """Give a walk from blocks what it wants, one at a time; pick: which of the wanted ones comes next."""
    walking = DagWalk(root, **bounds)
    payloads = list(walking.opened.payloads)
    asked: set[Cid] = set()
    while not walking.done:
        wanted = walking.wanted(limit)
        assert 0 < len(wanted) <= limit
        assert len(set(wanted)) == len(wanted)
        assert not asked.intersection(wanted), "a block is wanted again after it was given"
        cid = pick(wanted)
        given = walking.give(cid, blocks[cid])
        asked.add(cid)
        payloads += given.payloads
    return Walked(walking, payloads, blocks)


def raw(data: bytes) -> Cid:
    return Cid.of(data, RAW)


def put(blocks: Blocks, block: bytes) -> Cid:
    """Store a dag-pb block, return its CID."""
    cid = Cid.of(block, DAG_PB)
    blocks[cid] = block
    return cid


def unixfs_data(
    kind: int,
    data: bytes | None = None,
    filesize: int | None = None,
    blocksizes: Iterable[int] = (),
    fanout: int | None = None,
    hash_type: int | None = None,
) -> bytes:
    """A UnixFS message with exactly these fields."""
    out = b"\x08" + varint(kind)
    if data is not None:
        out += b"\x12" + varint(len(data)) + data
    if filesize is not None:
        out += b"\x18" + varint(filesize)
    for size in blocksizes:
        out += b"\x20" + varint(size)
    if hash_type is not None:
        out += b"\x28" + varint(hash_type)
    if fanout is not None:
        out += b"\x30" + varint(fanout)
    return out


def node(links: Iterable[tuple[Cid, bytes]], data: bytes) -> bytes:
    """A dag-pb block of these links (CID, name) and this data."""
    return encode([Link(cid, name, 0) for cid, name in links], data)


def put_leaf(blocks: Blocks, data: bytes, kind: int = FILE) -> tuple[Cid, int]:
    return put(blocks, node([], unixfs_data(kind, data, len(data)))), len(data)


def put_file(blocks: Blocks, parts: list[tuple[Cid, int]], own: bytes | None = None) -> tuple[Cid, int]:
    """A File node over parts (CID, file bytes), with data of its own if wanted."""
    size = len(own or b"") + sum(length for _, length in parts)
    data = unixfs_data(FILE, own, size, [length for _, length in parts])
    return put(blocks, node([(cid, b"") for cid, _ in parts], data)), size


def put_directory(blocks: Blocks, entries: list[tuple[bytes, Cid]]) -> Cid:
    return put(blocks, node([(cid, name) for name, cid in entries], unixfs_data(DIRECTORY)))


def put_raw(blocks: Blocks, data: bytes) -> tuple[Cid, int]:
    blocks[raw(data)] = data
    return raw(data), len(data)


def cut(data: bytes, chunk_bytes: int) -> list[Leaf]:
    """Raw leaves of a file; for the empty file, its one empty leaf."""
    starts = range(0, max(len(data), 1), chunk_bytes)
    chunks = [(start, data[start : start + chunk_bytes]) for start in starts]
    return [Leaf(raw(chunk), start, len(chunk)) for start, chunk in chunks]


def names_filling(link_bytes: int) -> list[str]:
    """Names whose links to empty files (CIDv1, Tsize 0) take exactly link_bytes of a directory's block.

    link_bytes: 1,000 or more. A link with a name of 128 to 255 letters takes 46 bytes and the name.
    """
    names = [f"{i:06}".ljust(200, "x") for i in range(link_bytes // 246 - 2)]
    left = link_bytes - 246 * len(names)
    count = 3 if left > 2 * (46 + 255) else 2
    for index in range(count):
        length = left // (count - index) - 46
        names.append(f"{index:06}".ljust(length, "y"))
        left -= length + 46
    return names
