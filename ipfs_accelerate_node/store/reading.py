"""Blocks, paths and whole DAGs out of the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Literal

from ipfs_accelerate_node.content import unixfs
from ipfs_accelerate_node.content.cid import RAW, Cid
from ipfs_accelerate_node.content.unixfs import NodeType
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.store.index import Index
from ipfs_accelerate_node.store.models import Models

log = logging.getLogger(__name__)
Scope = Literal["all", "entity", "block"]
BlockOf = Callable[[Cid], bytes | None]


def block(index: Index, models: Models, cid: Cid, *, public_only: bool) -> bytes | None:
    """As `Store.block`."""
    if (inline := cid.inline) is not None:
        return inline
    node = index.node(cid, public_only=public_only)
    if node is not None:
        if cid.matches(node):
            return node
        return _node_again(index, models, cid)
    return models.blobs.leaf(cid, public_only=public_only)


def has(index: Index, cid: Cid, *, public_only: bool = False) -> bool:
    """As `Store.has`."""
    if cid.inline is not None or index.node(cid, public_only=public_only) is not None:
        return True
    return bool(index.leaves(cid, public_only=public_only))


def roots(index: Index, cid: Cid) -> list[Cid]:
    """The models that hold this file or node block."""
    row = index.file(cid)
    return index.roots_of_node(cid) or ([] if row is None else [root for root, _ in index.homes(row.id)])


def resolve(block_of: BlockOf, cid: Cid, path: str) -> Cid:
    """As `Store.resolve`; empty components are ignored, as gateways do."""
    for name in filter(None, path.split("/")):
        found = unixfs.child(block_of, cid, name)
        if found is None:
            raise NotFound(f"{cid} has no entry {name[:80]!a}", cid=str(cid))
        cid = found
    return cid


def blocks(block_of: BlockOf, root: Cid, scope: Scope) -> Iterator[tuple[Cid, bytes]]:
    """As `Store.blocks`."""
    seen: set[Cid] = set()
    pending = [root]
    while pending:
        cid = pending.pop()
        if cid.canonical in seen:
            continue
        seen.add(cid.canonical)
        data = unixfs.known_block(block_of, cid)
        yield cid, data
        if scope != "block":
            pending.extend(reversed(_below(data, cid, scope)))


def _below(data: bytes, cid: Cid, scope: Scope) -> list[Cid]:
    """The blocks that belong to the scope and are linked from this one."""
    if cid.codec == RAW:
        return []
    if scope == "all":
        return unixfs.links(data, cid.codec)
    node = unixfs.decode(data)
    if node.type is NodeType.DIRECTORY:
        return []
    if node.type is NodeType.HAMT_SHARD:
        width = len(f"{node.fanout - 1:X}")  # a longer name is an entry, one of just the prefix another shard
        return [link.cid for link in node.links if len(link.name) == width]
    return [link.cid for link in node.links]


def _node_again(index: Index, models: Models, cid: Cid) -> bytes | None:
    """A node block whose row went bad, out of the plan of a model that has it."""
    for root in index.roots_of_node(cid):
        for known, data in models.read_plan(root).nodes:
            if known.canonical == cid.canonical and cid.matches(data):
                index.run("UPDATE nodes SET block=? WHERE cid=?", (data, bytes(cid.canonical)))
                log.warning("store.node_repaired cid=%s root=%s", cid, root)
                return data
    return None
