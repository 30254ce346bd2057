"""The dag-pb codec: a block is a list of links and, beside it, opaque data (here always UnixFS).

Decoding is as strict as go-codec-dagpb, so that what we take Kubo takes too: links and data in either order, but links
in one run, no unknown fields, Hash before Name before Tsize. Encoding gives the one canonical form: links first,
sorted by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent, InvalidCid

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf wire types
_MAX_UINT64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Link:
    """name: raw bytes, as foreign blocks may hold any. tsize: bytes of the linked DAG, as claimed; never trusted."""

    cid: Cid
    name: bytes = b""
    tsize: int = 0


@dataclass(frozen=True, slots=True)
class PbNode:
    """data: None where the block has none. data_at: offset of data within the block."""

    links: tuple[Link, ...]
    data: bytes | None
    data_at: int


def decode(block: bytes) -> PbNode:
    """Raises BadContent (code bad_dag; unsupported_codec for a link to what cannot be part of a model)."""
    links: list[Link] = []
    data: bytes | None = None
    data_at, at, end = 0, 0, len(block)
    links_ended = False
    while at < end:
        field, wire, at = read_tag(block, at)
        if wire != BYTES or field not in (1, 2):
            raise BadContent(f"dag-pb: field {field} of wire type {wire} in a node")
        start, at = read_span(block, at, end)
        if field == 2:
            if links_ended:
                raise BadContent("dag-pb: links before and after the data")
            links.append(_decode_link(block, start, at))
            continue
        if data is not None:
            raise BadContent("dag-pb: two data fields")
        data, data_at, links_ended = block[start:at], start, bool(links)
    return PbNode(tuple(links), data, data_at)


def _decode_link(block: bytes, at: int, end: int) -> Link:
    cid: Cid | None = None
    name = b""
    tsize = 0
    last = 0
    while at < end:
        field, wire, at = read_tag(block, at)
        if field <= last or field > 3 or wire != (VARINT if field == 3 else BYTES):
            raise BadContent(f"dag-pb: field {field} of wire type {wire} after field {last} in a link")
        last = field
        if field == 3:
            tsize, at = read_varint(block, at)
            continue
        start, at = read_span(block, at, end)
        if field == 1:
            cid = _decode_cid(block[start:at])
        else:
            name = block[start:at]
    if at != end:
        raise BadContent("dag-pb: a link's field runs past its end")
    if cid is None:
        raise BadContent("dag-pb: a link without a CID")
    return Link(cid, name, tsize)


def _decode_cid(data: bytes) -> Cid:
    try:
        return Cid.decode(data)
    except InvalidCid as exc:
        code = "unsupported_codec" if exc.code == "unsupported_codec" else "bad_dag"
        raise BadContent(f"dag-pb: bad CID in a link: {exc}", code=code) from exc


def encode(links: Iterable[Link], data: bytes | None) -> bytes:
    """The canonical block: links sorted by name (stable), each with name and tsize, then the data if there is any."""
    parts: list[bytes] = []
    for link in sorted(links, key=_name):
        body = link_body(link)
        parts += (b"\x12", varint(len(body)), body)
    if data is not None:
        parts += (b"\x0a", varint(len(data)), data)
    return b"".join(parts)


def _name(link: Link) -> bytes:
    return link.name


def link_body(link: Link) -> bytes:
    """The PBLink message of a link, without the tag and length that precede it in the node."""
    raw, name = bytes(link.cid), link.name
    return b"".join((b"\x0a", varint(len(raw)), raw, b"\x12", varint(len(name)), name, b"\x18", varint(link.tsize)))


# Protobuf's wire format; also for the UnixFS message inside the data.


def varint(value: int) -> bytes:
    """value: 0 … 2**64-1, in the shortest form."""
    if value < 0x80:
        return _ONE_BYTE[value]
    if value > _MAX_UINT64:
        raise ValueError(f"{value} does not fit into 64 bits")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_ONE_BYTE = [bytes((value,)) for value in range(0x80)]


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The unsigned 64-bit integer at offset at, and the offset after it. Any length up to ten bytes, as protobuf
    allows. Raises BadContent."""
    if at < len(data) and data[at] < 0x80:  # nearly always
        return data[at], at + 1
    value = shift = 0
    for at in range(at, min(at + 10, len(data))):  # noqa: B020 - the offset itself advances
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > _MAX_UINT64:
                break
            return value, at + 1
        shift += 7
    raise BadContent("protobuf: an integer that is cut short or over 64 bits")


def read_tag(data: bytes, at: int) -> tuple[int, int, int]:
    """Field number, wire type, and the offset after the tag. Raises BadContent."""
    tag, at = read_varint(data, at)
    if not 8 <= tag < 1 << 32:
        raise BadContent(f"protobuf: field number {tag >> 3}")
    return tag >> 3, tag & 7, at


def read_span(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Start and end of the length-delimited value at offset at; end: of the message. Raises BadContent."""
    length, at = read_varint(data, at)
    if at + length > end:
        raise BadContent("protobuf: a value that runs past the end of its message")
    return at, at + length
