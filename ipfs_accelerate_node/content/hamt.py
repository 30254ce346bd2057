"""Directories too large for one block: a hash array mapped trie over the entries' names, as Kubo builds and reads it.

A shard has up to `fanout` slots, taken by the next log2(fanout) bits of the name's hash (murmur3-x64-64, most
significant bit first). A slot holds an entry, if only one name falls there, or else a further shard. The bitfield
(big-endian, leading zero bytes cut) says which slots are taken; a link's name is the slot in upper-case hex, followed
by the entry's name if it is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mmh3

from ipfs_accelerate_node.content import dagpb
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.content.dagpb import Link, varint
from ipfs_accelerate_node.errors import BadContent, UnsafeContent

FANOUT = 256
MAX_FANOUT = 1024  # Kubo reads no wider shard
HASH_BITS = 64
MURMUR3_X64_64 = 0x22


@dataclass(frozen=True, slots=True)
class Position:
    """Where a shard stands in its trie: the bits that every name below it starts with. fanout is the root's."""

    fanout: int
    bits: int = 0
    used: int = 0

    def below(self, slot: int) -> Position:
        width = _width(self.fanout)
        return Position(self.fanout, self.bits << width | slot, self.used + width)

    def slot(self, hashed: int) -> int | None:
        """The slot of this shard for a name of that hash; None where the hash has no bits left."""
        width = _width(self.fanout)
        left = HASH_BITS - self.used - width
        return None if left < 0 else hashed >> left & (self.fanout - 1)

    def holds(self, hashed: int) -> bool:
        """Whether a name of that hash belongs below this position."""
        return hashed >> (HASH_BITS - self.used) == self.bits


@dataclass(frozen=True, slots=True)
class Slot:
    """name: None for a further shard."""

    index: int
    name: bytes | None
    link: Link


def name_hash(name: bytes) -> int:
    """The first 64 bits of murmur3's x64-128 form, which is what Kubo's directories use."""
    return mmh3.hash64(name, x64arch=True, signed=False)[0]


def _width(fanout: int) -> int:
    return fanout.bit_length() - 1


def root_position(hash_type: int, fanout: int) -> Position:
    """Raises BadContent for a shard of a kind that Kubo would not read."""
    if hash_type != MURMUR3_X64_64:
        raise BadContent(f"HAMT: hash function 0x{hash_type:x}, expected murmur3-x64-64")
    if not 8 <= fanout <= MAX_FANOUT or fanout & (fanout - 1):
        raise BadContent(f"HAMT: fanout {fanout} is not a power of two from 8 to {MAX_FANOUT}")
    return Position(fanout)


def check_below(position: Position, hash_type: int, fanout: int) -> None:
    """Raises BadContent for a shard that is of another kind than the root of its trie."""
    if (hash_type, fanout) != (MURMUR3_X64_64, position.fanout):
        raise BadContent(f"HAMT: hash 0x{hash_type:x} and fanout {fanout} below a root of fanout {position.fanout}")


def slots(position: Position, bitfield: bytes, links: Sequence[Link]) -> list[Slot]:
    """The taken slots of a shard at that position, in order. Raises BadContent where bitfield, prefixes, names and
    position disagree, or where a shard other than the root is empty."""
    if len(bitfield) > position.fanout // 8:
        raise BadContent(f"HAMT: a bitfield of {len(bitfield)} bytes for fanout {position.fanout}")
    taken = int.from_bytes(bitfield, "big")
    if taken.bit_count() != len(links):
        raise BadContent(f"HAMT: {taken.bit_count()} bits for {len(links)} links")
    if position.used and not links:
        raise BadContent("HAMT: an empty shard below the root")
    if position.used + _width(position.fanout) > HASH_BITS:
        raise BadContent("HAMT: deeper than the hash is long")
    indices = (index for index in range(position.fanout) if taken >> index & 1)
    return [_slot(position, index, link) for index, link in zip(indices, links, strict=True)]


def _slot(position: Position, index: int, link: Link) -> Slot:
    prefix = _prefix(position.fanout, index)
    if not link.name.startswith(prefix):
        raise BadContent(f"HAMT: link {link.name[:80]!r} in slot {prefix.decode()}")
    name = link.name[len(prefix) :]
    if name and not position.below(index).holds(name_hash(name)):
        raise BadContent(f"HAMT: entry {name[:80]!r} in a shard that its hash does not lead to")
    return Slot(index, name or None, link)


def _prefix(fanout: int, index: int) -> bytes:
    return b"%0*X" % (len(f"{fanout - 1:X}"), index)


def build(entries: Sequence[Link], fanout: int = FANOUT) -> tuple[Cid, int, list[tuple[Cid, bytes]]]:
    """CID and cumulative bytes of the root shard, and all shards, children first.

    entries: name to what it stands for, distinct names. Raises UnsafeContent (code invalid_path) for two names with
    the same hash, which no such directory can hold.
    """
    shards: list[tuple[Cid, bytes]] = []
    hashed = [(name_hash(entry.name), entry) for entry in entries]
    root = _build_shard(Position(fanout), hashed, shards)
    return root.cid, root.tsize, shards


def _build_shard(position: Position, entries: list[tuple[int, Link]], shards: list[tuple[Cid, bytes]]) -> Link:
    groups: dict[int, list[tuple[int, Link]]] = {}
    for hashed, entry in entries:
        slot = position.slot(hashed)
        if slot is None:
            raise UnsafeContent(
                f"a sharded directory cannot hold both {entries[0][1].name!r} and {entries[1][1].name!r}: "
                "their names have the same hash",
                code="invalid_path",
            )
        groups.setdefault(slot, []).append((hashed, entry))
    links, bitfield = [], 0
    for slot in sorted(groups):
        group, prefix = groups[slot], _prefix(position.fanout, slot)
        if len(group) == 1:
            child = replace(group[0][1], name=prefix + group[0][1].name)
        else:
            child = replace(_build_shard(position.below(slot), group, shards), name=prefix)
        links.append(child)
        bitfield |= 1 << slot
    block = dagpb.encode(links, _shard_data(bitfield, position.fanout))
    cid = Cid.of(block, DAG_PB)
    shards.append((cid, block))
    return Link(cid, b"", len(block) + sum(link.tsize for link in links))


def _shard_data(bitfield: int, fanout: int) -> bytes:
    raw = bitfield.to_bytes((bitfield.bit_length() + 7) // 8, "big")
    field = b"\x12" + varint(len(raw)) + raw if raw else b""
    return b"".join((b"\x08\x05", field, b"\x28", varint(MURMUR3_X64_64), b"\x30", varint(fanout)))
