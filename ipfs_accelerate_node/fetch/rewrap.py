"""The dag-pb leaves of a file, made again out of its bytes.

A partial file keeps payloads, not the few bytes around them. For a leaf as every importer writes it those follow from
its length, so after a restart the block can be guessed and its CID tells whether the guess was right.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipfs_accelerate_node.content import unixfs
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.content.dagpb import varint
from ipfs_accelerate_node.content.plan import Leaf
from ipfs_accelerate_node.content.unixfs import NodeType


@dataclass(frozen=True, slots=True)
class Part:
    """Where the bytes below a dag-pb block stand: in which file (its CID and size), from offset, so many."""

    file: Cid
    file_size: int
    offset: int
    length: int

    def guesses(self, cid: Cid) -> tuple[Leaf, ...]:
        """The block as a leaf, in the two forms that importers use."""
        return tuple(_leaf(cid, self, kind) for kind in (NodeType.FILE, NodeType.RAW))


def parts_below(cid: Cid, block: bytes, at: Part | None) -> dict[Cid, Part]:
    """The dag-pb children of a file's node block. at: where the block itself stands; None when it is a file's root.

    Empty for what is no file node. Raises BadContent like `unixfs.decode`.
    """
    if cid.codec != DAG_PB:
        return {}
    node = unixfs.decode(block)
    if node.type is not NodeType.FILE or not node.links:
        return {}
    size = unixfs.content_size(node)
    whole = at or Part(cid.canonical, size, 0, size)
    found: dict[Cid, Part] = {}
    offset = whole.offset + len(node.data)
    for link, length in zip(node.links, node.blocksizes, strict=True):
        if link.cid.codec == DAG_PB:
            found.setdefault(link.cid.canonical, Part(whole.file, whole.file_size, offset, length))
        offset += length
    return found


def _leaf(cid: Cid, part: Part, kind: NodeType) -> Leaf:
    """Source: UnixFS Data message (Type, Data, filesize) as field 1 of a dag-pb node without links."""
    before = b"\x08" + varint(kind) + b"\x12" + varint(part.length)
    after = b"\x18" + varint(part.length)
    prefix = b"\x0a" + varint(len(before) + part.length + len(after)) + before
    return Leaf(cid, part.offset, part.length, prefix, after)
