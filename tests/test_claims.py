"""Table E: what is refused of another node's benchmark record, and with which word."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.benchmarks.schema import read_benchmark
from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.peers.claims import open_claim
from ipfs_accelerate_node.records.canonical import decode, encode
from ipfs_accelerate_node.records.envelope import (
    INDEX_PREFIX,
    LIFETIME_S,
    MAP_PREFIX,
    REQUEST_PREFIX,
    SKEW_S,
    Sealed,
    seal,
)
from tests.support.results import MODEL, OTHER_MODEL, key, record, sealed

NOW = 1_800_000_000
GOOD = sealed(key(1), created=NOW)


def refused(made: Sealed, *, now: int = NOW, model: Cid | None = MODEL) -> str:
    with pytest.raises(NodeError) as refusal:
        open_claim(made.envelope_bytes, made.record_bytes, read_benchmark, now=now, model=model)
    return refusal.value.code


def test_a_good_one() -> None:
    found = open_claim(GOOD.envelope_bytes, GOOD.record_bytes, read_benchmark, now=NOW, model=MODEL)
    assert (found.signer, found.seq, found.cores) == (key(1).peer_id, 1, 8)
    assert (found.low_ns, found.median_ns, found.high_ns) == (1_500_000, 2_000_000, 2_500_000)
    assert found.per_s == pytest.approx(50_000)
    assert (found.envelope_cid, found.record_cid) == (GOOD.envelope_cid, GOOD.record_cid)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 8 * (len(GOOD.envelope_bytes) + len(GOOD.record_bytes)) - 1))
def test_one_bit_anywhere(at: int) -> None:
    both = bytearray(GOOD.envelope_bytes + GOOD.record_bytes)
    both[at // 8] ^= 1 << at % 8
    envelope, block = bytes(both[: len(GOOD.envelope_bytes)]), bytes(both[len(GOOD.envelope_bytes) :])
    with pytest.raises(NodeError):
        open_claim(envelope, block, read_benchmark, now=NOW)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600), st.binary(max_size=600))
def test_no_bytes_make_it_fail_otherwise(envelope: bytes, block: bytes) -> None:
    with pytest.raises(NodeError):
        open_claim(envelope, block, read_benchmark, now=NOW)


def test_size_comes_before_parsing() -> None:
    made = Sealed(GOOD.record_cid, b"\xff" * (64 * 1024 + 1), GOOD.envelope_cid, GOOD.envelope_bytes)
    assert refused(made) == "bad_record"
    made = Sealed(GOOD.record_cid, GOOD.record_bytes, GOOD.envelope_cid, b"\xff" * 513)
    assert refused(made) == "bad_record"


@pytest.mark.parametrize("prefix", [MAP_PREFIX, INDEX_PREFIX, REQUEST_PREFIX, b""])
def test_signed_for_another_purpose(prefix: bytes) -> None:
    assert refused(seal(record(created=NOW), key(1), prefix)) == "bad_signature"


def test_another_signature_or_none() -> None:
    envelope = decode(GOOD.envelope_bytes)
    assert isinstance(envelope, dict)
    for change in ({"sig": bytes(64)}, {"key": key(2).public}, {"key": bytes(36)}, {"sig": b""}, {"sig": None}):
        block = encode({**envelope, **change})
        made = Sealed(GOOD.record_cid, GOOD.record_bytes, Cid.of(block, DAG_CBOR), block)
        assert refused(made) == "bad_signature"
    other = sealed(key(1), created=NOW, seq=2)
    assert (
        refused(Sealed(GOOD.record_cid, other.record_bytes, GOOD.envelope_cid, GOOD.envelope_bytes)) == "hash_mismatch"
    )


def test_times() -> None:
    assert refused(GOOD, now=NOW - SKEW_S - 1) == "record_from_future"
    assert refused(GOOD, now=NOW + LIFETIME_S + SKEW_S + 1) == "record_expired"
    assert refused(sealed(key(1), created=0)) == "record_expired"
    open_claim(GOOD.envelope_bytes, GOOD.record_bytes, read_benchmark, now=NOW - SKEW_S)
    open_claim(GOOD.envelope_bytes, GOOD.record_bytes, read_benchmark, now=NOW + LIFETIME_S + SKEW_S)


def test_of_something_else() -> None:
    assert refused(sealed(key(1), created=NOW, model=OTHER_MODEL)) == "foreign_record"
    for change in ({"schema": "another/thing"}, {"schema": None}, {"model": None}, {"model": str(MODEL)}):
        assert refused(sealed(key(1), created=NOW, **change)) == "bad_record"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"status": "MOCK"}, "mock_record"),
        ({"engine": "mock"}, "mock_record"),
        ({"v": 3}, "record_version"),
        ({"v": True}, "record_version"),
        ({"state": {"busy": True}}, "machine_busy"),
        ({"samples_ns": [0, 1, 1]}, "bad_record"),
        ({"samples_ns": [-1, 1, 1]}, "bad_record"),
        ({"samples_ns": [10**18, 1, 1]}, "bad_record"),
        ({"samples_ns": [1, 1]}, "bad_record"),
        ({"samples_ns": []}, "bad_record"),
        ({"samples_ns": [True, 1, 1]}, "bad_record"),
        ({"work": [1]}, "bad_record"),
        ({"device": "\x1b[31mred"}, "bad_record"),
        ({"device": "x" * 201}, "bad_record"),
        ({"device_name": "right\u202eleft"}, "bad_record"),
        ({"task": 7}, "bad_record"),
        ({"machine": {"cpu": "x" * 1000}}, "bad_record"),
        ({"machine": None}, "bad_record"),
        ({"workload": {"name": "w", "repeats": -1}}, "bad_record"),
    ],
)
def test_what_makes_no_sense(change: dict[str, Any], code: str) -> None:
    assert refused(sealed(key(1), created=NOW, **change)) == code


def test_fields_of_a_later_version_are_kept_with_the_signed_bytes() -> None:
    made = sealed(key(1), created=NOW, colour="blue", next=Cid.of(b"a huge DAG", 0x70))
    found = open_claim(made.envelope_bytes, made.record_bytes, read_benchmark, now=NOW)
    assert found.record_bytes == made.record_bytes
