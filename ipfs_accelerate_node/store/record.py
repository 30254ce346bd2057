"""``partial/<cid>.have``: which bytes of a partial file are durable.

A head with the file's size, then an entry for each run of bytes, appended after it was synced; a torn tail is none.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.layout import Layout
from ipfs_accelerate_node.store.ranges import Ranges

SUFFIX = ".have"
_HEAD = struct.Struct("<8sQ")
_MAGIC = b"ianhave1"
_ENTRY = struct.Struct("<QQI")  # offset, length, crc32 of both
_LIMIT_BYTES = 1 << 30


def head(size: int) -> bytes:
    return _HEAD.pack(_MAGIC, size)


def create(name: str, folder: int, size: int) -> int:
    """A record without entries, synced and open. Raises OSError."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        os.ftruncate(fd, 0)
        disk.write_all(fd, head(size), 0)
        os.fsync(folder)
    except OSError:
        os.close(fd)
        raise
    return fd


def entries(ranges: Iterable[tuple[int, int]]) -> bytes:
    packed = [struct.pack("<QQ", start, end - start) for start, end in ranges]
    return b"".join(part + struct.pack("<I", zlib.crc32(part)) for part in packed)


def read(data: bytes, size: int, length: int) -> tuple[Ranges, int]:
    """What a record says of a file of that size, whose data is length bytes long by now; and the offset after its last
    whole entry, 0 if it is no record of such a file."""
    found = Ranges()
    if data[: _HEAD.size] != head(size):
        return found, 0
    at = _HEAD.size
    while at + _ENTRY.size <= len(data):
        offset, count, crc = _ENTRY.unpack_from(data, at)
        if zlib.crc32(data[at : at + 16]) != crc or offset + count > min(size, length):
            break
        found.add(offset, offset + count)
        at += _ENTRY.size
    return found, at


def recorded(layout: Layout, cid: Cid, size: int) -> Ranges:
    """The bytes of a partial file that are known to be durable; none if there is no record of it."""
    name = str(cid.canonical)
    there = disk.stat_if_there(name, dir_fd=layout.partial)
    try:
        data = disk.read_file(f"{name}{SUFFIX}", dir_fd=layout.partial, limit_bytes=_LIMIT_BYTES)
    except FileNotFoundError:
        data = b""
    return read(data, size, 0 if there is None else there.st_size)[0]
