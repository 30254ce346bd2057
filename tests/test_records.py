"""Signed records against independent code: another CBOR writer, raw `cryptography`, `multiformats`, libipld."""

from __future__ import annotations

import hashlib

import libipld
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from multiformats import CID

from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import BadContent, IntegrityError, NodeError
from ipfs_accelerate_node.records.canonical import MAX_BYTES, MAX_DEPTH, Value, decode, encode
from ipfs_accelerate_node.records.envelope import (
    BENCH_PREFIX,
    INDEX_PREFIX,
    LIFETIME_S,
    SKEW_S,
    envelope_record,
    open_envelope,
    seal,
)
from ipfs_accelerate_node.records.key import NodeKey

NOW = 1_800_000_000
KEY = NodeKey(bytes(range(32)))
ROOT = Cid.of(b"a model", 0x70)
RECORD: dict[str, Value] = {
    "created": NOW,
    "expires": NOW + LIFETIME_S,
    "seq": 7,
    "model": ROOT,
    "samples_ns": [1, 24, 256, 65_536, 2**32, 2**64 - 1],
    "note": "é",
}
SEALED = seal(RECORD, KEY, BENCH_PREFIX)


def other_cbor(value: object) -> bytes:
    """dag-cbor by another hand, straight from RFC 8949."""

    def head(major: int, n: int) -> bytes:
        for limit, minor, width in ((24, n, 0), (2**8, 24, 1), (2**16, 25, 2), (2**32, 26, 4), (2**64, 27, 8)):
            if n < limit:
                return bytes([major * 32 + minor]) + (n.to_bytes(width, "big") if width else b"")
        raise AssertionError(n)

    if value is None or isinstance(value, bool):
        return {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, ~value)
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, Cid):
        link = bytes(CID.decode(str(value)))
        return b"\xd8\x2a" + head(2, len(link) + 1) + b"\0" + link
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(other_cbor, value))
    assert isinstance(value, dict)
    pairs = sorted((other_cbor(k), other_cbor(v)) for k, v in value.items())  # heads order by length first
    return head(5, len(pairs)) + b"".join(k + v for k, v in pairs)


links = st.binary(max_size=40).map(lambda data: Cid.of(data, DAG_CBOR))
values: st.SearchStrategy[Value] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=40)
    | links
    | links.map(bytes),  # bytes that look like a link, and are none
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=200, deadline=None)
def test_a_value_has_the_encoding_that_two_others_give_it(value: Value) -> None:
    data = encode(value)
    assert data == other_cbor(value)
    libipld.decode_dag_cbor(data)  # a third reader takes it
    back = decode(data)
    assert back == value
    assert encode(back) == data


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_canonical_or_refused(data: bytes) -> None:
    try:
        value = decode(data)
    except BadContent:
        return
    assert other_cbor(value) == data


@pytest.mark.parametrize(
    "block",
    [
        "",
        "1801",  # an integer longer than it need be: libipld takes it
        "1b00000000ffffffff",
        "fb3ff0000000000000",
        "fb7ff8000000000000",
        "f93c00",
        "f7",
        "f818",
        "9f01ff",
        "5f4101ff",
        "bf616101ff",
        "a10102",
        "a2616101616102",
        "a2616201616102",
        "a262616101616202",  # longer key first
        "c101",
        "d82a4100",
        "d82a420155",
        "d82a6100",
        "d82a5825000171122" + "0" * 63,  # one byte short
        "61ff",
        "63eda080",
        "0000",
        "5bffffffffffffffff",
        "9bffffffffffffffff",
        "bb7fffffffffffffff",
        "1c",
        "ff",
    ],
)
def test_other_encodings_are_refused(block: str) -> None:
    with pytest.raises(BadContent) as caught:
        decode(bytes.fromhex(block))
    assert caught.value.code == "bad_record"


@pytest.mark.parametrize(
    "value", [1.0, float("nan"), float("inf"), 2**64, -(2**64) - 1, "\ud800", (1,), {1: 2}, bytearray(b"x"), object()]
)
def test_what_has_no_place_in_a_record_is_refused(value: Value) -> None:
    with pytest.raises(BadContent, match="record"):
        encode({"x": value})


def test_depth_and_size_have_limits() -> None:
    nested: Value = 0
    for _ in range(MAX_DEPTH):
        nested = [nested]
    assert decode(encode(nested)) == nested
    for levels in (MAX_DEPTH + 1, 60_000):
        with pytest.raises(BadContent, match="levels"):
            decode(b"\x81" * levels + b"\0")
    with pytest.raises(BadContent, match="at most"):
        decode(b"\x81" * MAX_BYTES + b"\0")
    with pytest.raises(BadContent, match="at most"):
        encode(bytes(MAX_BYTES))


def test_a_second_implementation_verifies_the_record() -> None:
    envelope = libipld.decode_dag_cbor(SEALED.envelope_bytes)
    assert set(envelope) == {"v", "record", "key", "sig"}
    assert envelope["v"] == 1
    assert str(CID.decode(envelope["record"]).set(base="base32")) == str(SEALED.record_cid)
    assert envelope["key"][:4].hex() == "08011220"
    Ed25519PublicKey.from_public_bytes(envelope["key"][4:]).verify(
        envelope["sig"], b"ipfs-accel-bench-v1:" + SEALED.record_bytes
    )
    assert CID.decode(str(SEALED.record_cid)) == CID(
        "base32", 1, "dag-cbor", ("sha2-256", hashlib.sha256(SEALED.record_bytes).digest())
    )
    assert SEALED.record_bytes == other_cbor(RECORD)


def test_open_gives_what_was_sealed() -> None:
    opened = open_envelope(SEALED.envelope_bytes, SEALED.record_bytes, BENCH_PREFIX, now=NOW, key=KEY.public)
    assert opened.record == RECORD
    assert opened.signer == KEY.peer_id
    assert (opened.record_cid, opened.envelope_cid) == (SEALED.record_cid, SEALED.envelope_cid)
    assert envelope_record(SEALED.envelope_bytes) == SEALED.record_cid


def test_one_flipped_bit_anywhere_fails() -> None:
    blocks = (SEALED.envelope_bytes, SEALED.record_bytes)
    for which, block in enumerate(blocks):
        for bit in range(len(block) * 8):
            flipped = bytearray(block)
            flipped[bit // 8] ^= 1 << bit % 8
            envelope, record = (bytes(flipped) if n == which else blocks[n] for n in (0, 1))
            with pytest.raises(NodeError) as caught:
                open_envelope(envelope, record, BENCH_PREFIX)
            assert caught.value.code in {"bad_record", "bad_signature", "hash_mismatch"}


@given(st.integers(0, 2**30), st.binary(min_size=1, max_size=8), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_mutation_fails(at: int, replacement: bytes, of_envelope: bool) -> None:
    block = SEALED.envelope_bytes if of_envelope else SEALED.record_bytes
    at %= len(block)
    mutated = block[:at] + replacement + block[at + 1 :]
    if mutated == block:
        return
    pair = (mutated, SEALED.record_bytes) if of_envelope else (SEALED.envelope_bytes, mutated)
    with pytest.raises(NodeError):
        open_envelope(*pair, BENCH_PREFIX)


def envelope(**changed: Value) -> bytes:
    fields: dict[str, Value] = {
        "v": 1,
        "record": SEALED.record_cid,
        "key": KEY.public,
        "sig": KEY.sign(BENCH_PREFIX + SEALED.record_bytes),
    }
    return encode({name: value for name, value in {**fields, **changed}.items() if value != "absent"})


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ({"sig": "absent"}, "bad_record"),
        ({"key": "absent"}, "bad_record"),
        ({"sig": b""}, "bad_signature"),
        ({"sig": bytes(64)}, "bad_signature"),
        ({"sig": KEY.sign(SEALED.record_bytes)}, "bad_signature"),  # without its prefix
        ({"sig": KEY.sign(INDEX_PREFIX + SEALED.record_bytes)}, "bad_signature"),
        ({"sig": KEY.sign(BENCH_PREFIX + b"other bytes")}, "bad_signature"),
        ({"key": NodeKey(bytes(32)).public}, "bad_signature"),
        ({"key": KEY.public[4:]}, "bad_signature"),
        ({"key": bytes.fromhex("08021220") + KEY.public[4:]}, "bad_signature"),
        ({"v": 2}, "bad_record"),
        ({"v": True}, "bad_record"),
        ({"record": bytes(SEALED.record_cid)}, "bad_record"),
        ({"record": ROOT}, "hash_mismatch"),
        ({"extra": 1}, "bad_record"),
    ],
)
def test_a_wrong_envelope_is_refused(case: dict[str, Value], code: str) -> None:
    with pytest.raises((BadContent, IntegrityError)) as caught:
        open_envelope(envelope(**case), SEALED.record_bytes, BENCH_PREFIX)
    assert caught.value.code == code


def test_only_the_named_signer_is_accepted() -> None:
    with pytest.raises(BadContent, match="another key"):
        open_envelope(SEALED.envelope_bytes, SEALED.record_bytes, BENCH_PREFIX, key=NodeKey(bytes(32)).public)


def test_size_is_checked_before_anything_is_parsed() -> None:
    with pytest.raises(BadContent, match="at most"):
        open_envelope(SEALED.envelope_bytes, bytes(MAX_BYTES + 1), BENCH_PREFIX)
    with pytest.raises(BadContent, match="at most"):
        open_envelope(bytes(513), SEALED.record_bytes, BENCH_PREFIX)


@pytest.mark.parametrize(
    ("created", "lifetime", "code"),
    [
        (4_070_908_800, LIFETIME_S, "record_from_future"),  # 2099
        (NOW + SKEW_S + 1, LIFETIME_S, "record_from_future"),
        (NOW + SKEW_S, LIFETIME_S, None),
        (NOW - LIFETIME_S - SKEW_S, LIFETIME_S, None),
        (NOW - LIFETIME_S - SKEW_S - 1, LIFETIME_S, "record_expired"),
        (0, LIFETIME_S, "record_expired"),  # 1970
    ],
)
def test_times_have_five_minutes_of_skew(created: int, lifetime: int, code: str | None) -> None:
    sealed = seal({"created": created, "expires": created + lifetime, "seq": 0}, KEY, BENCH_PREFIX)
    if code is None:
        open_envelope(sealed.envelope_bytes, sealed.record_bytes, BENCH_PREFIX, now=NOW)
        return
    with pytest.raises(BadContent) as caught:
        open_envelope(sealed.envelope_bytes, sealed.record_bytes, BENCH_PREFIX, now=NOW)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "broken",
    [{"created": None}, {"expires": NOW}, {"seq": -1}, {"seq": True}, {"created": "now"}, {"created": -1}],
)
def test_a_record_without_times_is_not_sealed(broken: dict[str, Value]) -> None:
    with pytest.raises(BadContent, match="record"):
        seal({**RECORD, **broken}, KEY, BENCH_PREFIX)
