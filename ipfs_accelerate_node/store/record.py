"""What an earlier run left of a file, read from its record without opening it for writing."""

from __future__ import annotations

import zlib

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.layout import Layout
from ipfs_accelerate_node.store.partial import _ENTRY, _HEAD, _MAGIC, RECORD_SUFFIX
from ipfs_accelerate_node.store.ranges import Ranges

_LIMIT_BYTES = 1 << 30


def recorded(layout: Layout, cid: Cid, size: int) -> Ranges:
    """The bytes of a partial file that are known to be durable; none if there is no record, or one of another size."""
    found = Ranges()
    name = str(cid.canonical)
    there = disk.stat_if_there(name, dir_fd=layout.partial)
    try:
        data = disk.read_file(f"{name}{RECORD_SUFFIX}", dir_fd=layout.partial, limit_bytes=_LIMIT_BYTES)
    except FileNotFoundError:
        return found
    if there is None or data[: _HEAD.size] != _HEAD.pack(_MAGIC, size):
        return found
    for at in range(_HEAD.size, len(data) - _ENTRY.size + 1, _ENTRY.size):
        offset, count, crc = _ENTRY.unpack_from(data, at)
        if zlib.crc32(data[at : at + 16]) != crc or offset + count > min(size, there.st_size):
            break
        found.add(offset, offset + count)
    return found
