"""A record and the envelope that signs it: two blocks, so that the record's CID is the same whoever signs.

Verified in IPNS order: size, presence, key, signature, schema, time. A record says *when* itself (``created``,
``expires``, ``seq``: integers, seconds since 1970 and a counter): what is outside the signature is anyone's word.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import BadContent, IntegrityError
from ipfs_accelerate_node.records.canonical import MAX_BYTES, Value, bad, decode, encode
from ipfs_accelerate_node.records.key import PUBLIC_BYTES, SIGNATURE_BYTES, NodeKey, peer_id, verify

BENCH_PREFIX = b"ipfs-accel-bench-v1:"
MAP_PREFIX = b"ipfs-accel-map-v1:"
INDEX_PREFIX = b"ipfs-accel-index-v1:"
REQUEST_PREFIX = b"ipfs-accel-req-v1:"

ENVELOPE_VERSION = 1
MAX_ENVELOPE_BYTES = 512
SKEW_S = 300
LIFETIME_S = 180 * 24 * 3600
_FIELDS = {"v", "record", "key", "sig"}


@dataclass(frozen=True, slots=True)
class Sealed:
    """A signed record as two blocks; both CIDs are v1, dag-cbor, sha2-256: what Kubo computes too."""

    record_cid: Cid
    record_bytes: bytes
    envelope_cid: Cid
    envelope_bytes: bytes


@dataclass(frozen=True, slots=True)
class SealedBlocks:
    """A signed record that goes on in blocks which it links: what the links name is signed with it. linked: those
    blocks, each after the ones that it links itself; mostly none."""

    sealed: Sealed
    linked: tuple[tuple[Cid, bytes], ...] = ()

    @property
    def envelope_cid(self) -> Cid:
        return self.sealed.envelope_cid

    @property
    def blocks(self) -> tuple[tuple[Cid, bytes], ...]:
        """All of them, each after those it links."""
        sealed = self.sealed
        record = (sealed.record_cid, sealed.record_bytes)
        return (*self.linked, record, (sealed.envelope_cid, sealed.envelope_bytes))


@dataclass(frozen=True, slots=True)
class Opened:
    """A record whose signature holds. key: 36 bytes; signer: its PeerID."""

    record: dict[str, Value]
    key: bytes
    signer: str
    record_cid: Cid
    envelope_cid: Cid


def seal(record: dict[str, Value], key: NodeKey, prefix: bytes, *, max_bytes: int = MAX_BYTES) -> Sealed:
    """Signs prefix + the record's canonical bytes. Raises BadContent(bad_record) for what has no canonical form, lacks
    created, expires or seq, or takes more than max_bytes."""
    _check_times(record)
    record_bytes = encode(record, max_bytes=max_bytes)
    record_cid = Cid.of(record_bytes, DAG_CBOR)
    envelope_bytes = encode(
        {
            "v": ENVELOPE_VERSION,
            "record": record_cid,
            "key": key.public,
            "sig": key.sign(prefix + record_bytes),
        }
    )
    return Sealed(record_cid, record_bytes, Cid.of(envelope_bytes, DAG_CBOR), envelope_bytes)


def is_envelope(block: bytes) -> bool:
    """Whether a block has an envelope's form; for telling a record's block from it, nothing is verified."""
    try:
        _parts(block)
    except BadContent:
        return False
    return True


def envelope_record(envelope_bytes: bytes) -> Cid:
    """The CID of the record an envelope is about; nothing is verified yet. Raises BadContent(bad_record)."""
    return _parts(envelope_bytes)[0]


def open_envelope(
    envelope_bytes: bytes,
    record_bytes: bytes,
    prefix: bytes,
    *,
    now: int | None = None,
    key: bytes | None = None,
    max_bytes: int = MAX_BYTES,
) -> Opened:
    """The record, once everything about it is verified.

    now: seconds since 1970; None leaves the times unchecked: one's own archive, or a reader that checks a schema first
    and calls `check_time` then. key: the only signer accepted. max_bytes: of the record.
    Raises BadContent (bad_record, bad_signature, record_expired, record_from_future) and IntegrityError when the
    envelope is about other bytes.
    """
    if len(record_bytes) > max_bytes:
        raise bad(f"{len(record_bytes)} bytes, at most {max_bytes} are allowed")
    named, public, signature = _parts(envelope_bytes)
    record_cid = Cid.of(record_bytes, DAG_CBOR)
    if named != record_cid:
        raise IntegrityError(expected=named, actual=record_cid, origin="record")
    if key is not None and public != key:
        raise BadContent("signature refused: signed by another key", code="bad_signature")
    verify(public, signature, prefix + record_bytes)
    record = decode(record_bytes, max_bytes=max_bytes)
    if not isinstance(record, dict):
        raise bad("a record is a map")
    _check_times(record)
    if now is not None:
        check_time(record, now)
    return Opened(record, public, peer_id(public), record_cid, Cid.of(envelope_bytes, DAG_CBOR))


def _parts(envelope_bytes: bytes) -> tuple[Cid, bytes, bytes]:
    """record, key, sig of an envelope that has exactly its fields: whatever else it held would be unsigned."""
    envelope = decode(envelope_bytes, max_bytes=MAX_ENVELOPE_BYTES)
    if not isinstance(envelope, dict) or set(envelope) != _FIELDS:
        raise bad("an envelope is a map of v, record, key and sig")
    version, named, public, signature = (envelope[name] for name in ("v", "record", "key", "sig"))
    if type(version) is not int or version != ENVELOPE_VERSION:
        raise bad("an envelope of another version")
    if not isinstance(named, Cid):
        raise bad("an envelope that names no record")
    if not isinstance(public, bytes) or len(public) != PUBLIC_BYTES:
        raise BadContent("signature refused: the envelope has no key", code="bad_signature")
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        raise BadContent("signature refused: the envelope has no signature", code="bad_signature")
    return named, public, signature


def check_time(record: dict[str, Value], now: int) -> None:
    """now: seconds since 1970. Raises BadContent (record_from_future, record_expired, bad_record)."""
    created, expires = _check_times(record)
    if created > now + SKEW_S:
        raise BadContent("the record was made in the future", code="record_from_future")
    if expires < now - SKEW_S:
        raise BadContent("the record has expired", code="record_expired")


def _check_times(record: dict[str, Value]) -> tuple[int, int]:
    created, expires, seq = (_whole(record, name) for name in ("created", "expires", "seq"))
    if created < 0 or seq < 0 or expires <= created:
        raise bad("a record's created, expires or seq makes no sense")
    return created, expires


def _whole(record: dict[str, Value], name: str) -> int:
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad(f"a record has {name}, an integer")
    return value
