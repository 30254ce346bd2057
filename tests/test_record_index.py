"""The index of a node's records: one encoding, signed with what it links; changed, foreign, old and revoked ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import BadContent, NodeError
from ipfs_accelerate_node.records.canonical import decode, encode
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, INDEX_PREFIX, LIFETIME_S, SKEW_S, SealedBlocks, seal
from ipfs_accelerate_node.records.index import (
    ENTRIES_PER_BLOCK,
    LAST_SEQ,
    MAX_ENTRIES,
    OpenedIndex,
    RecordIndex,
    index_next,
    open_index,
    revocation,
    seal_index,
)
from ipfs_accelerate_node.records.key import NodeKey
from tests.support import kubo

kubo_factory = kubo.kubo_factory

NOW = 1_800_000_000
KEY = NodeKey(bytes(range(32)))
OTHER = NodeKey(bytes(range(1, 33)))


def entries(count: int, start: int = 0) -> tuple[Cid, ...]:
    return tuple(Cid.of(b"%d" % n, DAG_CBOR) for n in range(start, start + count))


SMALL = RecordIndex(entries(3), entries(2, 100), 5, NOW, NOW + LIFETIME_S, dial=KEY.peer_id)
SEALED = seal_index(SMALL, KEY)


def blocks(made: SealedBlocks) -> dict[Cid, bytes]:
    return dict(made.blocks)


def opened(made: SealedBlocks, *, now: int = NOW, **more: object) -> OpenedIndex:
    return open_index(made.sealed.envelope_bytes, blocks(made), now=now, **more)  # type: ignore[arg-type]


def refusal(made: SealedBlocks, given: Mapping[Cid, bytes] | None = None, *, now: int = NOW, **more: object) -> str:
    with pytest.raises(NodeError) as refused:
        open_index(made.sealed.envelope_bytes, given or blocks(made), now=now, **more)  # type: ignore[arg-type]
    return refused.value.code


def test_what_was_sealed_is_read_back() -> None:
    assert opened(SEALED).index == SMALL
    assert opened(SEALED).signer == KEY.peer_id
    assert seal_index(SMALL, KEY) == SEALED
    assert all(encode(decode(block)) == block for _, block in SEALED.blocks)


@pytest.mark.parametrize(
    ("own", "seen"),
    [(0, 0), (ENTRIES_PER_BLOCK, 0), (ENTRIES_PER_BLOCK, 1), (ENTRIES_PER_BLOCK - 1, 2), (2500, 2500)],
)
def test_long_ones_go_on_in_linked_blocks(own: int, seen: int) -> None:
    made = seal_index(replace(SMALL, own=entries(own), seen=entries(seen, 10_000)), KEY)
    assert opened(made).index.own == entries(own)
    assert opened(made).index.seen == entries(seen, 10_000)
    assert len(made.linked) == max(0, -(-(own + seen) // ENTRIES_PER_BLOCK) - 1)
    assert all(len(block) < 64 * 1024 for _, block in made.blocks)


def test_more_than_a_reader_takes_is_left_out_and_what_others_said_first() -> None:
    made = opened(seal_index(replace(SMALL, own=entries(MAX_ENTRIES - 10), seen=entries(100, 50_000)), KEY)).index
    assert (len(made.own), len(made.seen)) == (MAX_ENTRIES - 10, 10)
    made = opened(seal_index(replace(SMALL, own=entries(MAX_ENTRIES + 10), seen=entries(100, 50_000)), KEY)).index
    assert (len(made.own), len(made.seen)) == (MAX_ENTRIES, 0)


def test_without_its_later_blocks_the_newest_are_had() -> None:
    made = seal_index(replace(SMALL, own=entries(2500)), KEY)
    first = {cid: block for cid, block in made.blocks if cid not in dict(made.linked)}
    found = open_index(made.sealed.envelope_bytes, first, now=NOW)
    assert found.index.own == entries(ENTRIES_PER_BLOCK)
    assert index_next(made.sealed.record_bytes) == made.linked[-1][0]


def test_a_linked_block_is_what_its_link_says() -> None:
    made = seal_index(replace(SMALL, own=entries(1500)), KEY)
    (link, _), *_ = made.linked
    assert refusal(made, blocks(made) | {link: encode({"own": [*entries(1, 7)], "seen": []})}) == "hash_mismatch"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_one_bit_of_it_changed_is_refused(data: st.DataObject) -> None:
    parts = [SEALED.sealed.envelope_bytes, SEALED.sealed.record_bytes]
    which = data.draw(st.integers(0, 1))
    at = data.draw(st.integers(0, 8 * len(parts[which]) - 1))
    changed = bytearray(parts[which])
    changed[at // 8] ^= 1 << at % 8
    parts[which] = bytes(changed)
    with pytest.raises(NodeError):
        # the block comes under the name that the envelope has for it, as a daemon that lies would give it
        open_index(parts[0], {SEALED.sealed.record_cid: parts[1]}, now=NOW)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    with pytest.raises(NodeError):
        open_index(data, {Cid.of(data, DAG_CBOR): data}, now=NOW)


def test_times_and_counters() -> None:
    last = opened(SEALED)
    known = (last.index.seq, last.record_cid)
    assert opened(SEALED, newest=known) == last  # the same again
    assert opened(SEALED, newest=(4, entries(1)[0])) == last
    assert refusal(SEALED, newest=(6, entries(1)[0])) == "record_stale"
    assert refusal(SEALED, newest=(5, entries(1)[0])) == "key_equivocates"
    assert refusal(SEALED, now=NOW - SKEW_S - 1) == "record_from_future"
    assert refusal(SEALED, now=NOW + LIFETIME_S + SKEW_S + 1) == "record_expired"


def test_only_this_key_for_this_purpose() -> None:
    assert opened(SEALED, key=KEY.public) == opened(SEALED)
    assert refusal(SEALED, key=OTHER.public) == "bad_signature"
    record = decode(SEALED.sealed.record_bytes)
    assert isinstance(record, dict)
    foreign = SealedBlocks(seal(record, KEY, BENCH_PREFIX))
    assert refusal(foreign) == "bad_signature"
    stolen = SealedBlocks(seal(record, OTHER, INDEX_PREFIX))  # names KEY inside, signed by another
    assert refusal(stolen) == "bad_signature"


def test_a_revoked_key_stays_revoked() -> None:
    last = revocation(KEY, created=NOW)
    found = opened(last, now=NOW + 100 * LIFETIME_S)
    assert found.index.revoked
    assert found.index.seq == LAST_SEQ
    assert refusal(SEALED, newest=(found.index.seq, found.record_cid)) == "record_stale"


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"v": True}, {"own": None}, {"own": ["text"]}, {"own": [Cid.of(b"raw")]}, {"seen": {}},
        {"next": "text"}, {"next": Cid.of(b"raw")}, {"seq": LAST_SEQ}, {"revoked": True}, {"revoked": 1},
        {"dial": ""}, {"dial": "x" * 200}, {"dial": "../x"}, {"seq": -1}, {"created": None},
    ],
)  # fmt: skip
def test_what_is_no_index(change: dict[str, object]) -> None:
    record = decode(SEALED.sealed.record_bytes)
    assert isinstance(record, dict)

    def made() -> SealedBlocks:
        return SealedBlocks(seal({**record, **change}, KEY, INDEX_PREFIX))  # type: ignore[dict-item]

    with pytest.raises(BadContent):
        opened(made())


def test_fields_of_a_later_version_are_left_alone() -> None:
    record = decode(SEALED.sealed.record_bytes)
    assert isinstance(record, dict)
    later = SealedBlocks(seal({**record, "colour": "blue"}, KEY, INDEX_PREFIX))
    assert opened(later).index == SMALL


@pytest.mark.kubo
def test_kubo_has_the_same_names_for_its_blocks(kubo_factory: kubo.KuboFactory, tmp_path: object) -> None:
    from pathlib import Path

    daemon = kubo_factory()
    made = seal_index(replace(SMALL, own=entries(1500)), KEY)
    for number, (cid, block) in enumerate(made.blocks):
        (path := Path(str(tmp_path)) / str(number)).write_bytes(block)
        assert daemon.cli("block", "put", "--cid-codec=dag-cbor", path) == str(cid)
    assert f'"seq":{SMALL.seq}' in daemon.cli("dag", "get", str(made.sealed.record_cid))
