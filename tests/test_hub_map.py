"""Map records: one map, one encoding; whatever is changed, missing, foreign, old or too large is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import BadContent, IntegrityError, NodeError
from ipfs_accelerate_node.records.canonical import Value, decode, encode
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, LIFETIME_S, MAP_PREFIX, SKEW_S, SealedBlocks, seal
from ipfs_accelerate_node.records.hub_map import (
    MAX_BLOCK_BYTES,
    MAX_FILES,
    HubMap,
    MappedFile,
    OpenedMap,
    map_links,
    open_map,
    renewed,
    seal_map,
)
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.records.rendezvous import map_meeting, rendezvous
from tests.support import kubo

kubo_factory = kubo.kubo_factory

NOW = 1_800_000_000
KEY = NodeKey(bytes(range(32)))
ROOT = Cid.of(b"a model", 0x70)


def file(path: str, text: bytes = b"x", *, cid: bool = True) -> MappedFile:
    oid = Cid.of(text).digest.hex()
    return MappedFile(path, len(text), oid, Cid.of(text) if cid else None)


SMALL = HubMap(
    "model",
    "org/name",
    "0123456789" * 4,
    ROOT,
    (file(".gitattributes", cid=False), file("config.json"), file("sub/weights.bin", b"weights")),
    NOW,
    NOW + LIFETIME_S,
    7,
    {"pipeline_tag": "text-generation", "tags": ["license:mit", "é"]},
)
LARGE = replace(SMALL, files=tuple(file(f"{'d' * 200}/{n:05d}-{'x' * 200}") for n in range(5_000)))
SEALED = seal_map(SMALL, KEY)
SHARDED = seal_map(LARGE, KEY)


def opened(sealed: SealedBlocks, **how: Any) -> OpenedMap:
    how.setdefault("now", NOW)
    return open_map(sealed.sealed.envelope_bytes, dict(sealed.blocks), **how)


def test_a_map_comes_back_as_it_was() -> None:
    for made, sealed in ((SMALL, SEALED), (LARGE, SHARDED)):
        back = opened(sealed)
        assert back.map == made
        assert (back.signer, back.envelope_cid) == (KEY.peer_id, sealed.envelope_cid)
    assert len(SHARDED.linked) > 1
    assert all(len(block) <= MAX_BLOCK_BYTES for _, block in SHARDED.blocks)
    assert map_links(SEALED.sealed.envelope_bytes) == [SEALED.sealed.record_cid]
    assert map_links(SHARDED.sealed.envelope_bytes, SHARDED.sealed.record_bytes) == [cid for cid, _ in SHARDED.linked]
    assert (SMALL.known, LARGE.known) == (2, 5_000)


def test_a_second_encoding_is_the_same() -> None:
    assert seal_map(replace(SMALL), KEY) == SEALED
    assert seal_map(replace(LARGE), KEY) == SHARDED
    assert seal_map(SMALL, NodeKey(bytes(32))).sealed.record_cid == SEALED.sealed.record_cid


_paths = st.text("abz.é-", min_size=1, max_size=8).filter(lambda text: text.strip(".") != "")
_files = st.dictionaries(_paths, st.tuples(st.binary(max_size=40), st.booleans()), max_size=8)


@settings(max_examples=60, deadline=None)
@given(_files)
def test_every_map_comes_back(listed: dict[str, tuple[bytes, bool]]) -> None:
    files = tuple(file(path, text, cid=known) for path, (text, known) in sorted(listed.items()))
    made = replace(SMALL, files=files, root=None)
    sealed = seal_map(made, KEY)
    assert opened(sealed).map == made
    assert encode(decode(sealed.sealed.record_bytes)) == sealed.sealed.record_bytes


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    sealed = data.draw(st.sampled_from([SEALED, SHARDED]), label="sealed")
    blocks = dict(sealed.blocks)
    envelope = sealed.sealed.envelope_bytes
    which = data.draw(st.sampled_from(sorted(blocks, key=str)), label="block")
    bit = data.draw(st.integers(0, 8 * len(blocks[which]) - 1), label="bit")
    flipped = bytearray(blocks[which])
    flipped[bit // 8] ^= 1 << bit % 8
    if which == sealed.envelope_cid:
        envelope = bytes(flipped)
    else:
        blocks[which] = bytes(flipped)
    with pytest.raises(NodeError):
        open_map(envelope, blocks, now=NOW)


def test_every_bit_of_an_envelope_counts() -> None:
    envelope, blocks = SEALED.sealed.envelope_bytes, dict(SEALED.blocks)
    for bit in range(8 * len(envelope)):
        flipped = bytearray(envelope)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NodeError):
            open_map(bytes(flipped), blocks, now=NOW)


def refused(sealed: SealedBlocks, **how: Any) -> str:
    with pytest.raises(BadContent) as caught:
        opened(sealed, **how)
    return caught.value.code


def test_of_a_foreign_topic() -> None:
    record = decode(SEALED.sealed.record_bytes)
    assert isinstance(record, dict)
    assert seal(record, KEY, MAP_PREFIX).record_cid == SEALED.sealed.record_cid
    assert refused(SealedBlocks(seal(record, KEY, BENCH_PREFIX))) == "bad_signature"
    bench: dict[str, Value] = {"created": NOW, "expires": NOW + 9, "seq": 1, "model": ROOT}
    assert refused(SealedBlocks(seal(bench, KEY, BENCH_PREFIX))) == "bad_signature"
    assert refused(SealedBlocks(seal(bench, KEY, MAP_PREFIX))) == "bad_record"


def test_times_and_counters() -> None:
    assert refused(SEALED, now=NOW + LIFETIME_S + SKEW_S + 1) == "record_expired"
    assert refused(SEALED, now=NOW - SKEW_S - 1) == "record_from_future"
    assert opened(SEALED, now=None).map.seq == 7
    newer = seal_map(renewed(SMALL, created=NOW + 9, seq=8), KEY)
    last = (8, newer.sealed.record_cid)
    assert refused(SEALED, newest=last) == "record_stale"
    assert opened(newer, newest=last).map.expires == NOW + 9 + LIFETIME_S
    same_number = seal_map(replace(SMALL, about={}, seq=8), KEY)
    assert refused(same_number, newest=last) == "record_stale"
    assert opened(newer, newest=(7, SEALED.sealed.record_cid)).map.seq == 8
    assert refused(SEALED, key=NodeKey(bytes(32)).public) == "bad_signature"


def test_what_is_checked_first() -> None:
    """Of several faults the one that costs the least to see."""
    envelope, record = SEALED.sealed.envelope_bytes, SEALED.sealed.record_bytes
    cid = SEALED.sealed.record_cid
    long_ago = NOW - 10 * LIFETIME_S
    with pytest.raises(BadContent, match="at most"):
        open_map(envelope, {cid: record + bytes(MAX_BLOCK_BYTES)}, now=long_ago)
    with pytest.raises(BadContent, match="not there"):
        open_map(envelope, {}, now=long_ago)
    with pytest.raises(IntegrityError):
        open_map(envelope, {cid: record[:-1]}, now=long_ago)
    broken = decode(record)
    assert isinstance(broken, dict)
    broken["repo"] = ""
    foreign = seal(broken, KEY, BENCH_PREFIX)
    assert refused(SealedBlocks(foreign), now=long_ago) == "bad_signature"
    assert refused(SealedBlocks(seal(broken, KEY, MAP_PREFIX)), now=long_ago) == "bad_record"
    assert refused(SEALED, now=long_ago, newest=(9, ROOT)) == "record_from_future"


def test_a_shard_that_lacks_or_is_another() -> None:
    blocks = dict(SHARDED.blocks)
    first, second = (cid for cid, _ in SHARDED.linked[:2])
    envelope = SHARDED.sealed.envelope_bytes
    with pytest.raises(BadContent, match="not there"):
        open_map(envelope, {cid: block for cid, block in blocks.items() if cid != first}, now=NOW)
    with pytest.raises(IntegrityError):
        open_map(envelope, {**blocks, first: blocks[second]}, now=NOW)


def _first(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["files"][1]
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(v=2),
        lambda r: r.update(v=True),
        lambda r: r.update(kind="map"),
        lambda r: r.update(repo_type="space"),
        lambda r: r.update(repo="org/name?"),
        lambda r: r.update(commit="main"),
        lambda r: r.update(profile="another"),
        lambda r: r.update(root="bafy"),
        lambda r: r.update(root=b"x"),
        lambda r: r.update(more=1),
        lambda r: r.pop("about"),
        lambda r: r.update(about=[]),
        lambda r: r.update(about={"a": {"b": 1}}),
        lambda r: r.update(about={"a": [1]}),
        lambda r: r.update(shards=[]),
        lambda r: r.update(files={}),
        lambda r: r["files"].reverse(),
        lambda r: r["files"].append(r["files"][-1]),
        lambda r: _first(r).update(path="../config.json"),
        lambda r: _first(r).update(path="/config.json"),
        lambda r: _first(r).update(path="a" * 5_000),
        lambda r: _first(r).update(size=-1),
        lambda r: _first(r).update(size=1 << 63),
        lambda r: _first(r).update(size=True),
        lambda r: _first(r).update(oid="x"),
        lambda r: _first(r).update(oid=bytes(31)),
        lambda r: _first(r).update(cid=None),  # a root without one of its files
        lambda r: _first(r).update(more=1),
        lambda r: _first(r).pop("cid"),
        lambda r: r["files"].insert(0, 5),
    ],
)
def test_another_schema_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    record = decode(SEALED.sealed.record_bytes)
    assert isinstance(record, dict)
    change(record)
    assert refused(SealedBlocks(seal(record, KEY, MAP_PREFIX))) == "bad_record"


def test_what_is_too_large_is_not_made() -> None:
    many = tuple(file(f"{n:06d}") for n in range(MAX_FILES + 1))
    for wrong in (replace(SMALL, files=many), replace(SMALL, about={"tags": ["x" * 1000] * 100})):
        with pytest.raises(BadContent) as caught:
            seal_map(wrong, KEY)
        assert caught.value.code == "bad_record"


def test_two_names_that_one_file_system_confuses() -> None:
    with pytest.raises(BadContent):
        seal_map(replace(SMALL, files=(file("README.md"), file("readme.md"))), KEY)


def test_a_meeting_place_is_the_same_for_all() -> None:
    cid, block = map_meeting("org/name", "0" * 40)
    assert decode(block) == {"app": "ipfs-accelerate-node", "v": 1, "kind": "map", "of": "org/name@" + "0" * 40}
    assert cid == Cid.of(block, DAG_CBOR) == map_meeting("org/name", "0" * 40)[0]
    others = [rendezvous("node", None), rendezvous("results", ROOT), map_meeting("org/name", "1" * 40)]
    assert len({cid, *(other for other, _ in others)}) == 4
    assert decode(others[0][1]) == {"app": "ipfs-accelerate-node", "v": 1, "kind": "node", "of": None}


@pytest.mark.kubo
@pytest.mark.timeout(60)
def test_kubo_gives_the_same_cids(kubo_factory: kubo.KuboFactory, tmp_path: Path) -> None:
    daemon = kubo_factory()
    written = (*SEALED.blocks, *SHARDED.blocks, map_meeting("org/name", "0" * 40))
    for cid, block in written:
        (path := tmp_path / "block").write_bytes(block)
        put = daemon.cli("dag", "put", "--input-codec=dag-cbor", "--store-codec=dag-cbor", "--allow-big-block", path)
        assert put == str(cid)
    shown = daemon.cli("dag", "get", str(SEALED.sealed.record_cid))
    assert f'"root":{{"/":"{ROOT}"}}' in shown.replace(" ", "")
