"""CARv1 as a stream, without I/O: bytes in, verified blocks out, memory bounded by one section whatever is sent.

The header is read by a parser for exactly its one canonical dag-cbor shape, ``{"roots": [CID…], "version": 1}``: no
nesting to exhaust, no duplicate keys, no second spelling. Its roots are a hint; only hashes decide.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipfs_accelerate_node.content import varint
from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.errors import BadContent, InvalidCid, NodeError

MAX_HEADER_BYTES = 64 * 1024
MAX_BLOCK_BYTES = 2 * 1024 * 1024
_MAX_CID_BYTES = 4 * varint.MAX_BYTES + 128  # four varints and an identity digest

_ROOTS = b"\xa2\x65roots"
_VERSION_1 = b"\x67version\x01"
_LINK = b"\xd8\x2a"  # tag 42


class CarReader:
    """origin: named in errors. budget_bytes: of the whole stream, header and framing included; None: no bound.

    After an error only that error comes again; blocks verified before it are always handed out first.
    """

    def __init__(
        self,
        *,
        max_header: int = MAX_HEADER_BYTES,
        max_block: int = MAX_BLOCK_BYTES,
        budget_bytes: int | None = None,
        origin: str = "CAR stream",
    ) -> None:
        self._max_header = max_header
        self._max_block = max_block
        self._budget_bytes = budget_bytes
        self._origin = origin
        self._buffer = bytearray()
        self._roots: tuple[Cid, ...] | None = None
        self._failure: NodeError | None = None
        self.received_bytes = 0

    @property
    def roots(self) -> tuple[Cid, ...]:
        """What the header claims; empty before it has arrived."""
        return self._roots or ()

    def feed(self, data: Buffer) -> list[tuple[Cid, bytes]]:
        """Blocks that are complete now, each hashed against its CID, in stream order. Hashes: off the event loop.

        Raises BadContent (bad_car, block_too_large, budget_exceeded) or IntegrityError; if blocks before the fault
        are complete they are returned and the next call raises.
        """
        if self._failure is None:
            self.received_bytes += len(data)
            self._buffer += data
        blocks: list[tuple[Cid, bytes]] = []
        try:
            if self._failure is None:
                self._take(blocks)
                self._check_budget()
        except NodeError as exc:
            self._failure = exc
            self._buffer.clear()
        if self._failure is not None and not blocks:
            raise self._failure
        return blocks

    def close(self) -> None:
        """The stream has ended. Raises BadContent (incomplete) inside a section, and any failure not raised yet."""
        if self._failure is not None:
            raise self._failure
        if self._roots is None or self._buffer:
            raise BadContent(f"{self._origin} ended inside a section", code="incomplete")

    def _check_budget(self) -> None:
        if self._budget_bytes is not None and self.received_bytes > self._budget_bytes:
            raise BadContent(
                f"{self._origin} sent more than the {self._budget_bytes} bytes it may", code="budget_exceeded"
            )

    def _take(self, blocks: list[tuple[Cid, bytes]]) -> None:
        at = 0
        try:
            while (section := self._section(at)) is not None:
                start, at = section
                if self._roots is None:
                    self._roots = _parse_header(bytes(self._buffer[start:at]))
                else:
                    blocks.append(self._block(start, at))
        finally:
            del self._buffer[:at]

    def _section(self, at: int) -> tuple[int, int] | None:
        """Start and end of the section at this offset, None while it is incomplete."""
        try:
            length, start = varint.read(self._buffer, at)
        except varint.BadVarint as exc:
            if exc.truncated:
                return None
            raise BadContent(f"{self._origin}: section length: {exc}", code="bad_car") from exc
        if length == 0:
            raise BadContent(f"{self._origin} has an empty section", code="bad_car")
        if self._roots is None and length > self._max_header:
            raise BadContent(f"{self._origin} claims a header of {length} bytes", code="bad_car")
        if self._roots is not None and length > self._max_block + _MAX_CID_BYTES:
            raise BadContent(f"{self._origin} claims a block of {length} bytes", code="block_too_large")
        return (start, start + length) if start + length <= len(self._buffer) else None

    def _block(self, start: int, end: int) -> tuple[Cid, bytes]:
        section = bytes(self._buffer[start:end])
        try:
            cid, at = Cid.decode_prefix(section)
        except InvalidCid as exc:
            raise BadContent(f"{self._origin} has a section without a usable CID: {exc}", code="bad_car") from exc
        block = section[at:]
        if len(block) > self._max_block:
            raise BadContent(f"{self._origin} sent {cid} with {len(block)} bytes", code="block_too_large")
        cid.check(block, self._origin)
        return cid, block


def car_header(roots: Sequence[Cid]) -> bytes:
    """The first section of a CARv1 with these roots."""
    links = b"".join(_LINK + _cbor_head(2, len(bytes(cid)) + 1) + b"\0" + bytes(cid) for cid in roots)
    header = _ROOTS + _cbor_head(4, len(roots)) + links + _VERSION_1
    return varint.write(len(header)) + header


def car_block(cid: Cid, data: bytes) -> bytes:
    """One section; the caller vouches that the bytes are the CID's."""
    name = bytes(cid)
    return varint.write(len(name) + len(data)) + name + data


def _cbor_head(major: int, value: int) -> bytes:
    for size, marker in ((1, 24), (2, 25), (4, 26), (8, 27)):
        if value < 24:
            return bytes((major << 5 | value,))
        if value < 1 << 8 * size:
            return bytes((major << 5 | marker,)) + value.to_bytes(size, "big")
    raise ValueError(f"{value} does not fit CBOR")


def _parse_header(header: bytes) -> tuple[Cid, ...]:
    """The roots. Raises BadContent (bad_car) unless the bytes are exactly what `car_header` writes for them."""
    count, at = _cbor_length(header, _expect(header, 0, _ROOTS), major=4)
    roots = []
    for _ in range(count):
        length, at = _cbor_length(header, _expect(header, at, _LINK), major=2)
        link, at = header[at : at + length], at + length
        if link[:1] != b"\0" or len(link) != length:
            raise _bad_header("a root is not a link")
        try:
            roots.append(Cid.decode(link[1:]))
        except InvalidCid as exc:
            raise _bad_header(f"a root is not a usable CID: {exc}") from exc
    if _expect(header, at, _VERSION_1) != len(header):
        raise _bad_header("bytes after its end")
    return tuple(roots)


def _expect(header: bytes, at: int, wanted: bytes) -> int:
    if header[at : at + len(wanted)] != wanted:
        raise _bad_header(f"byte {at} is not that of a version 1 header")
    return at + len(wanted)


def _cbor_length(header: bytes, at: int, *, major: int) -> tuple[int, int]:
    first = header[at] if at < len(header) else 0xFF
    size = {24: 1, 25: 2, 26: 4, 27: 8}.get(first & 31, 0)
    value = int.from_bytes(header[at + 1 : at + 1 + size], "big") if size else first & 31
    end = at + 1 + size
    if first >> 5 != major or end > len(header) or header[at:end] != _cbor_head(major, value):
        raise _bad_header(f"byte {at} is not a length in canonical CBOR")
    return value, end


def _bad_header(reason: str) -> BadContent:
    return BadContent(f"not a CARv1 header: {reason}", code="bad_car")
