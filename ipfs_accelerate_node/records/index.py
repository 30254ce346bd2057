"""The index of a node: which records it signed, and which of others it accepted; under its IPNS name.

A signed block as any record (`records.envelope`); the name points to its envelope. What does not fit into one block
goes on in blocks that it links: what the links name is signed with them. Nothing is followed from here by itself, and
a reader takes the newest first and stops at a bound, so an index may be as long as its author likes.

A key that was lost is revoked by an index with the last counter there is: none is newer, so it stays the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import BadContent
from ipfs_accelerate_node.records.canonical import Value, bad, decode, encode
from ipfs_accelerate_node.records.envelope import (
    INDEX_PREFIX,
    LIFETIME_S,
    SealedBlocks,
    check_time,
    envelope_record,
    open_envelope,
    seal,
)
from ipfs_accelerate_node.records.key import NodeKey

VERSION = 1
LAST_SEQ = (1 << 63) - 1
ENTRIES_PER_BLOCK = 1000  # of 36-byte CIDs: some 41 KB
MAX_ENTRIES = 10_000  # that a writer lists and a reader takes, own and seen together
MAX_BLOCKS = 16
_MAX_DIAL = 128
_REQUIRED = {"v", "key", "seq", "own", "seen", "created", "expires"}


@dataclass(frozen=True, slots=True)
class RecordIndex:
    """own, seen: CIDs of envelopes, newest first. seq: grows with every change. dial: PeerID at which the node is
    reached where that is not its key's. created, expires: seconds since 1970."""

    own: tuple[Cid, ...]
    seen: tuple[Cid, ...]
    seq: int
    created: int
    expires: int
    dial: str | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class OpenedIndex:
    """An index whose signature holds. signer: PeerID of key."""

    index: RecordIndex
    key: bytes
    signer: str
    record_cid: Cid
    envelope_cid: Cid


def seal_index(made: RecordIndex, key: NodeKey) -> SealedBlocks:
    """Signs it; the same index and key give the same blocks. What is beyond MAX_ENTRIES, seen ones first, is left
    out. Raises BadContent(bad_record)."""
    own = [*made.own][:MAX_ENTRIES]
    seen = [*made.seen][: MAX_ENTRIES - len(own)]
    pages = _pages(own, seen)
    following: Cid | None = None
    shards: list[tuple[Cid, bytes]] = []
    for page in reversed(pages[1:]):
        block = encode(_linked(page, following))
        following = Cid.of(block, DAG_CBOR)
        shards.append((following, block))
    record: dict[str, Value] = {
        "v": VERSION,
        "key": key.public,
        "seq": made.seq,
        "created": made.created,
        "expires": made.expires,
        **_linked(pages[0], following),
    }
    if made.dial is not None:
        record["dial"] = made.dial
    if made.revoked:
        record["revoked"] = True
    _read(record)
    return SealedBlocks(seal(record, key, INDEX_PREFIX), tuple(shards))


def revocation(key: NodeKey, *, created: int) -> SealedBlocks:
    """The last index of a key: from created on (seconds since 1970), nothing that it signs is to be believed."""
    last = RecordIndex((), (), LAST_SEQ, created, created + LIFETIME_S, revoked=True)
    return seal_index(last, key)


def index_record(envelope: bytes) -> Cid:
    """The CID of the block that an index's envelope is about; nothing is verified. Raises BadContent(bad_record)."""
    return envelope_record(envelope)


def index_next(block: bytes) -> Cid | None:
    """What this block of an index (the signed one or one that it links) goes on in. Raises BadContent(bad_record)."""
    said = decode(block)
    following = said.get("next") if isinstance(said, dict) else None
    if following is not None and not _is_block(following):
        raise bad("an index goes on in what is no block of one")
    return following if isinstance(following, Cid) else None


def open_index(
    envelope: bytes,
    blocks: Mapping[Cid, bytes],
    *,
    now: int,
    key: bytes | None = None,
    newest: tuple[int, Cid] | None = None,
) -> OpenedIndex:
    """The index, once everything about it is verified.

    blocks: by CID, the signed one and those linked; a linked one that is not there ends it, so that the newest are had
    without the rest. now: seconds since 1970. key: the only signer accepted. newest: counter and block of this key's
    last index, as far as one is known; a revocation never expires.
    Raises BadContent (bad_record, bad_signature, record_expired, record_from_future, record_stale, key_equivocates) and
    IntegrityError.
    """
    named = envelope_record(envelope)
    if named not in blocks:
        raise bad("the index is not there")
    opened = open_envelope(envelope, blocks[named], INDEX_PREFIX, key=key)
    first = _read(opened.record)
    if opened.record["key"] != opened.key:
        raise BadContent("signature refused: the index names another key", code="bad_signature")
    check_time({**opened.record, "expires": first.expires + (LAST_SEQ if first.revoked else 0)}, now)
    if newest is not None and opened.record_cid != newest[1]:
        if first.seq < newest[0]:
            raise BadContent(f"the index is older than number {newest[0]} of the same key", code="record_stale")
        if first.seq == newest[0]:
            raise BadContent(f"the key signed two indexes with number {first.seq}", code="key_equivocates")
    own, seen = [*first.own], [*first.seen]
    following = index_next(blocks[named])
    for _ in range(MAX_BLOCKS):
        if following is None or following not in blocks or len(own) + len(seen) >= MAX_ENTRIES:
            break
        following.check(blocks[following], "index")
        page = decode(blocks[following])
        if not isinstance(page, dict) or not {"own", "seen"} <= set(page):
            raise bad("a linked block is no part of an index")
        own += _entries(page["own"])
        seen += _entries(page["seen"])
        following = index_next(blocks[following])
    whole = RecordIndex(
        tuple(own[:MAX_ENTRIES]),
        tuple(seen[:MAX_ENTRIES]),
        first.seq,
        first.created,
        first.expires,
        first.dial,
        first.revoked,
    )
    return OpenedIndex(whole, opened.key, opened.signer, opened.record_cid, opened.envelope_cid)


def _pages(own: Sequence[Cid], seen: Sequence[Cid]) -> list[tuple[Sequence[Cid], Sequence[Cid]]]:
    """Own ones first, ENTRIES_PER_BLOCK together; one page at least."""
    whose = [*((cid, True) for cid in own), *((cid, False) for cid in seen)]
    pages: list[tuple[Sequence[Cid], Sequence[Cid]]] = []
    for start in range(0, max(1, len(whose)), ENTRIES_PER_BLOCK):
        part = whose[start : start + ENTRIES_PER_BLOCK]
        pages.append(([cid for cid, mine in part if mine], [cid for cid, mine in part if not mine]))
    return pages


def _linked(page: tuple[Sequence[Cid], Sequence[Cid]], following: Cid | None) -> dict[str, Value]:
    listed: dict[str, Value] = {"own": [*page[0]], "seen": [*page[1]]}
    return listed if following is None else {**listed, "next": following}


def _read(record: Mapping[str, Value]) -> RecordIndex:
    """The schema of the signed block; fields that are not known are ignored. Raises BadContent(bad_record)."""
    if type(record.get("v")) is not int or record["v"] != VERSION:
        raise bad("it is no index of this version")
    if not _REQUIRED <= set(record):
        raise bad("it has not the fields of an index")
    dial, revoked = record.get("dial"), record.get("revoked", False)
    if dial is not None and not (isinstance(dial, str) and 0 < len(dial) <= _MAX_DIAL and dial.isalnum()):
        raise bad("it names no PeerID to dial")
    created, expires, seq = record["created"], record["expires"], record["seq"]
    if not isinstance(created, int) or not isinstance(expires, int) or not isinstance(seq, int):
        raise bad("its times are no integers")
    if not isinstance(revoked, bool) or not 0 <= seq <= LAST_SEQ or revoked != (seq == LAST_SEQ):
        raise bad("the last counter is for a key that is revoked, and for nothing else")
    return RecordIndex(
        tuple(_entries(record["own"])), tuple(_entries(record["seen"])), seq, created, expires, dial, revoked
    )


def _entries(value: Value) -> list[Cid]:
    if not isinstance(value, list):
        raise bad("an index has lists of envelopes")
    found = [cid for cid in value if isinstance(cid, Cid) and _is_block(cid)]
    if len(found) != len(value):
        raise bad("an index lists what is no envelope")
    return found


def _is_block(value: Value) -> bool:
    return isinstance(value, Cid) and value.codec == DAG_CBOR and value.canonical == value
