"""UnixFS: what a dag-pb block says about files and directories, and the way through directories by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from ipfs_accelerate_node.content import dagpb, hamt
from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.content.dagpb import BYTES, FIXED32, FIXED64, VARINT, Link, varint
from ipfs_accelerate_node.errors import BadContent, NotFound, UnsafeContent

BlockOf = Callable[[Cid], bytes | None]


class NodeType(IntEnum):
    """The protobuf's own numbers."""

    RAW = 0
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    HAMT_SHARD = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a directory. tsize: cumulative bytes of its DAG, for the parent's link."""

    name: str
    cid: Cid
    tsize: int


@dataclass(frozen=True, slots=True)
class UnixfsNode:
    """A dag-pb block read as UnixFS; mode and mtime are dropped.

    data: file bytes, a symlink's target, or a shard's bitfield; data_at: where they start in the block.
    filesize: as claimed, None if absent. blocksizes: file bytes below each link.
    """

    type: NodeType
    data: bytes = b""
    data_at: int = 0
    filesize: int | None = None
    blocksizes: tuple[int, ...] = ()
    hash_type: int = 0
    fanout: int = 0
    links: tuple[Link, ...] = ()


@dataclass(slots=True)
class _Message:
    """The fields of a UnixFS message while it is being read."""

    numbers: dict[int, int] = field(default_factory=dict)
    blocksizes: list[int] = field(default_factory=list)
    span: tuple[int, int] | None = None


def decode(block: bytes) -> UnixfsNode:
    """A dag-pb block as UnixFS. Raises BadContent (code bad_dag or unsupported_codec); says nothing about whether
    sizes and links agree (`content_size`, `hamt.slots`)."""
    node = dagpb.decode(block)
    if node.data is None:
        raise BadContent("UnixFS: a dag-pb node without data")
    message = _read(node.data)
    try:
        kind = NodeType(message.numbers[1])
    except (KeyError, ValueError) as exc:
        raise BadContent(f"UnixFS: node type {message.numbers.get(1, 'absent')}") from exc
    start, end = message.span or (0, 0)
    return UnixfsNode(
        type=kind,
        data=node.data[start:end],
        data_at=node.data_at + start,
        filesize=message.numbers.get(3),
        blocksizes=tuple(message.blocksizes),
        hash_type=message.numbers.get(5, 0),
        fanout=message.numbers.get(6, 0),
        links=node.links,
    )


def _read(data: bytes) -> _Message:
    message = _Message()
    at, end = 0, len(data)
    while at < end:
        number, wire, at = dagpb.read_tag(data, at)
        if wire == VARINT:
            value, at = dagpb.read_varint(data, at)
            _number(message, number, value)
        elif wire == BYTES:
            start, at = dagpb.read_span(data, at, end)
            _bytes(message, number, data, (start, at))
        elif wire in (FIXED32, FIXED64) and number > 6:  # of a later version; ignored like mode and mtime
            at += 4 if wire == FIXED32 else 8
        else:
            raise BadContent(f"UnixFS: field {number} of wire type {wire}")
    if at != end:
        raise BadContent("UnixFS: the message is cut short")
    return message


def _number(message: _Message, number: int, value: int) -> None:
    if number == 4:
        message.blocksizes.append(value)
    elif number == 2:
        raise BadContent("UnixFS: data that is a number")
    elif number in message.numbers:
        raise BadContent(f"UnixFS: field {number} twice")
    else:
        message.numbers[number] = value


def _bytes(message: _Message, number: int, data: bytes, span: tuple[int, int]) -> None:
    start, end = span
    if number == 2:
        if message.span is not None:
            raise BadContent("UnixFS: two data fields")
        message.span = span
    elif number == 4:  # packed, as any protobuf reader must also take it
        while start < end:
            value, start = dagpb.read_varint(data, start)
            message.blocksizes.append(value)
        if start != end:
            raise BadContent("UnixFS: packed blocksizes run past their end")
    elif number <= 6:
        raise BadContent(f"UnixFS: field {number} is not a number")


def content_size(node: UnixfsNode) -> int:
    """File bytes of a Raw or File node and all below it. Raises BadContent where its own claims disagree, or where it
    cannot be part of a file."""
    if node.type not in (NodeType.RAW, NodeType.FILE):
        raise BadContent(f"UnixFS: a {node.type.name} node in place of file content")
    if node.links and node.type is NodeType.RAW:
        raise BadContent("UnixFS: a Raw node with links")
    if len(node.blocksizes) != len(node.links):
        raise BadContent(f"UnixFS: {len(node.blocksizes)} blocksizes for {len(node.links)} links")
    if any(link.name for link in node.links):
        raise BadContent("UnixFS: a named link in a file")
    size = len(node.data) + sum(node.blocksizes)
    if node.filesize is not None and node.filesize != size:
        raise BadContent(f"UnixFS: filesize {node.filesize}, but its parts make {size}")
    return size


def file_node(parts: Sequence[tuple[Cid, int, int]]) -> tuple[bytes, int]:
    """The block that joins parts (CID, file bytes, tsize) into a file, and the file bytes."""
    size = sum(length for _, length, _ in parts)
    data = [b"\x08\x02\x18", varint(size)]
    for _, length, _ in parts:
        data += (b"\x20", varint(length))
    return dagpb.encode([Link(cid, b"", tsize) for cid, _, tsize in parts], b"".join(data)), size


DIRECTORY_DATA = b"\x08\x01"


def directory_node(links: Sequence[Link]) -> bytes:
    """The block of a basic directory."""
    return dagpb.encode(links, DIRECTORY_DATA)


def entry_name(raw: bytes) -> str:
    """A link's name as text. Raises UnsafeContent (code invalid_path) unless it is UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise UnsafeContent(f"file name {raw[:80]!r} is refused: not UTF-8", code="invalid_path") from exc


def links(block: bytes, codec: int) -> list[Cid]:
    """CIDs that a block links, in order, as spelled in it. Raises BadContent."""
    if codec == RAW:
        return []
    if codec != DAG_PB:
        raise BadContent(f"codec 0x{codec:x} is not part of a model", code="unsupported_codec")
    return [link.cid for link in dagpb.decode(block).links]


def known_block(block_of: BlockOf, cid: Cid) -> bytes:
    """The block of cid, inline or from block_of. Raises NotFound (code missing_block)."""
    block = cid.inline
    if block is None:
        block = block_of(cid)
    if block is None:
        raise NotFound(f"block {cid.canonical} is not here", code="missing_block", cid=str(cid.canonical))
    return block


def entries(block_of: BlockOf, directory: Cid) -> Iterator[Entry]:
    """Entries of a basic or sharded directory, in the order of its links; names are not checked for safety.

    Raises NotFound (code missing_block) for a block that block_of does not know, BadContent for what is no directory.
    """
    pending: list[tuple[Cid, hamt.Position | None] | Entry] = [(directory, None)]
    while pending:
        item = pending.pop()
        if isinstance(item, Entry):
            yield item
            continue
        cid, position = item
        node = _directory(block_of, cid, position)
        if node.type is NodeType.DIRECTORY:
            yield from (Entry(entry_name(link.name), link.cid, link.tsize) for link in node.links)
            continue
        position = position or hamt.root_position(node.hash_type, node.fanout)
        for slot in reversed(hamt.slots(position, node.data, node.links)):
            if slot.name is None:
                pending.append((slot.link.cid, position.below(slot.index)))
            else:
                pending.append(Entry(entry_name(slot.name), slot.link.cid, slot.link.tsize))


def child(block_of: BlockOf, directory: Cid, name: str) -> Cid | None:
    """What name means in a basic or sharded directory, None if nothing; the first of twins, as gateways answer.

    Raises as `entries` does, and reads only the shards on the way.
    """
    wanted = name.encode(errors="surrogatepass")
    hashed = hamt.name_hash(wanted)
    position: hamt.Position | None = None
    while True:
        node = _directory(block_of, directory, position)
        if node.type is NodeType.DIRECTORY:
            return next((link.cid for link in node.links if link.name == wanted), None)
        position = position or hamt.root_position(node.hash_type, node.fanout)
        index = position.slot(hashed)
        slots = hamt.slots(position, node.data, node.links)
        slot = next((slot for slot in slots if slot.index == index), None)
        if slot is None:
            return None
        if slot.name is not None:
            return slot.link.cid if slot.name == wanted else None
        directory, position = slot.link.cid, position.below(slot.index)


def _directory(block_of: BlockOf, cid: Cid, position: hamt.Position | None) -> UnixfsNode:
    """The node of a directory, or of a shard at that position. Raises BadContent if it is neither."""
    if cid.codec != DAG_PB:
        raise BadContent(f"{cid.canonical} is not a directory")
    node = decode(known_block(block_of, cid))
    if node.type is NodeType.HAMT_SHARD:
        if position is not None:
            hamt.check_below(position, node.hash_type, node.fanout)
        return node
    if node.type is NodeType.DIRECTORY and position is None:
        return node
    raise BadContent(f"{cid.canonical} is not a directory, but a {node.type.name} node")
