"""UnixFS messages, and the way through basic and sharded directories by name."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.content import hamt, unixfs
from ipfs_accelerate_node.content.build import Profile, directory_dag
from ipfs_accelerate_node.content.cid import DAG_CBOR, DAG_PB, IDENTITY, RAW, Cid
from ipfs_accelerate_node.content.dagpb import Link, encode, varint
from ipfs_accelerate_node.content.unixfs import Entry, NodeType
from ipfs_accelerate_node.errors import BadContent, NodeError, NotFound, UnsafeContent
from tests.support.dags import Blocks, node, put, raw, unixfs_data

SHARDED = Profile(hamt_threshold=0)
WHOLE = Profile()
NO_BLOCKS: Blocks = {}


@pytest.mark.parametrize("kind", list(NodeType))
def test_every_type_is_read_and_mode_and_mtime_are_dropped(kind: NodeType) -> None:
    setuid = b"\x38" + varint(0o4755)
    mtime = b"\x42\x07\x08\x01\x15\x01\x00\x00\x00"
    decoded = unixfs.decode(node([], unixfs_data(kind, b"abc") + setuid + mtime))
    assert (decoded.type, decoded.data) == (kind, b"abc")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty message: no type"),
        pytest.param(unixfs_data(6), id="type 6"),
        pytest.param(b"\x08" + varint(2**63), id="type over any enum"),
        pytest.param(b"\x08\x02\x08\x02", id="type twice"),
        pytest.param(b"\x0a\x01\x02", id="type as bytes"),
        pytest.param(b"\x08\x02\x10\x05", id="data as a number"),
        pytest.param(b"\x08\x02\x12\x01a\x12\x01b", id="data twice"),
        pytest.param(b"\x08\x02\x18\x01\x18\x01", id="filesize twice"),
        pytest.param(b"\x08\x02\x18", id="cut short"),
        pytest.param(b"\x08\x02\x12\x09abc", id="data past the end"),
        pytest.param(b"\x08\x02\x22\x02\x01\x80", id="packed blocksizes cut short"),
        pytest.param(b"\x08\x02\x4d\x01", id="fixed32 cut short"),
        pytest.param(b"\x08\x02\x1d\x01\0\0\0", id="filesize as fixed32"),
        pytest.param(b"\x08\x02\x4b", id="group"),
    ],
)
def test_bad_messages_are_bad_dag(data: bytes) -> None:
    with pytest.raises(BadContent) as caught:
        unixfs.decode(node([], data))
    assert caught.value.code == "bad_dag"


def test_a_node_without_data_is_bad_dag() -> None:
    with pytest.raises(BadContent):
        unixfs.decode(b"")


def test_unknown_later_fields_and_packed_blocksizes_are_read() -> None:
    data = unixfs_data(2, filesize=300) + b"\x22\x03\x2c\x80\x02" + b"\x48\x07\x51" + bytes(8) + b"\x5d" + bytes(4)
    assert unixfs.decode(node([], data)).blocksizes == (44, 256)


def test_data_at_is_where_the_payload_stands_in_the_block() -> None:
    for block in (
        node([], unixfs_data(2, b"payload", 7)),
        node([(raw(b"x"), b"")], unixfs_data(2, b"payload", 8, [1])),
        b"\x0a" + varint(13) + unixfs_data(2, b"payload", 7) + encode([Link(raw(b"x"))], None),
    ):
        decoded = unixfs.decode(block)
        assert block[decoded.data_at : decoded.data_at + 7] == decoded.data == b"payload"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(node([(raw(b"x"), b"")], unixfs_data(2, filesize=1)), id="a blocksize missing"),
        pytest.param(node([], unixfs_data(2, filesize=1, blocksizes=[1])), id="a blocksize too many"),
        pytest.param(node([(raw(b"x"), b"")], unixfs_data(2, filesize=2, blocksizes=[1])), id="filesize too large"),
        pytest.param(node([(raw(b"x"), b"")], unixfs_data(2, b"d", 1, [1])), id="own data not counted"),
        pytest.param(node([(raw(b"x"), b"part")], unixfs_data(2, filesize=1, blocksizes=[1])), id="named part"),
        pytest.param(node([(raw(b"x"), b"")], unixfs_data(0, filesize=1, blocksizes=[1])), id="raw with links"),
        pytest.param(node([], unixfs_data(1)), id="directory"),
    ],
)
def test_claims_that_disagree_are_bad_dag(block: bytes) -> None:
    with pytest.raises(BadContent) as caught:
        unixfs.content_size(unixfs.decode(block))
    assert caught.value.code == "bad_dag"


def test_links_by_codec() -> None:
    block = node([(raw(b"1"), b"b"), (Cid.of(b"2", DAG_PB), b"a")], unixfs_data(1))
    assert unixfs.links(block, DAG_PB) == [Cid.of(b"2", DAG_PB), raw(b"1")]
    assert unixfs.links(block, RAW) == []
    with pytest.raises(BadContent) as caught:
        unixfs.links(b"\xa0", DAG_CBOR)
    assert caught.value.code == "unsupported_codec"


def _directory(names: list[str], profile: Profile) -> tuple[Cid, Blocks, dict[str, Cid]]:
    content = {name: raw(name.encode()) for name in names}
    built = directory_dag([Entry(name, cid, len(name.encode())) for name, cid in content.items()], profile)
    return built.cid, dict(built.nodes), content


@pytest.mark.parametrize("profile", [WHOLE, SHARDED], ids=["basic", "sharded"])
@pytest.mark.parametrize("count", [0, 1, 2, 700])
def test_every_entry_is_found_by_name_and_no_other(profile: Profile, count: int) -> None:
    root, blocks, content = _directory([f"shard-{i:05}.safetensors" for i in range(count)], profile)
    assert {entry.name: entry.cid for entry in unixfs.entries(blocks.get, root)} == content
    for name, cid in content.items():
        assert unixfs.child(blocks.get, root, name) == cid
    for name in ("absent", "", "shard-00000.safetensors ", "\ud800"):
        assert unixfs.child(blocks.get, root, name) is None


def test_lookup_reads_only_the_shards_on_its_way() -> None:
    root, blocks, content = _directory([f"{i:05}" for i in range(700)], SHARDED)
    asked: list[Cid] = []

    def block_of(cid: Cid) -> bytes | None:
        asked.append(cid)
        return blocks.get(cid)

    for name in ("00000", "00345", "none"):
        asked.clear()
        unixfs.child(block_of, root, name)
        assert len(asked) <= 3
    assert len(blocks) > 100
    assert len(content) == 700


def test_first_of_twins_wins_in_lookup() -> None:
    blocks: Blocks = {}
    root = put(blocks, node([(raw(b"1"), b"a"), (raw(b"2"), b"a")], unixfs_data(1)))
    assert unixfs.child(blocks.get, root, "a") == raw(b"1")


def test_an_inline_directory_needs_no_block() -> None:
    inline = Cid.of(node([(Cid.of(b"x", RAW, IDENTITY), b"a")], unixfs_data(1)), DAG_PB, IDENTITY)
    assert unixfs.child(NO_BLOCKS.get, inline, "a") == Cid.of(b"x", RAW, IDENTITY)


def test_a_missing_shard_is_named() -> None:
    root, blocks, content = _directory([f"{i:05}" for i in range(700)], SHARDED)
    for cid in [cid for cid in blocks if cid != root]:
        del blocks[cid]
    first = next(iter(content))
    with pytest.raises(NotFound) as caught:
        unixfs.child(blocks.get, root, first)
    assert caught.value.code == "missing_block"
    with pytest.raises(NotFound):
        list(unixfs.entries(NO_BLOCKS.get, root))


@pytest.mark.parametrize("data", [unixfs_data(2, b"file"), unixfs_data(4, b"target"), unixfs_data(3)])
def test_what_is_no_directory_has_no_entries(data: bytes) -> None:
    blocks: Blocks = {}
    for cid in (put(blocks, node([], data)), raw(b"x")):
        with pytest.raises(BadContent):
            unixfs.child(blocks.get, cid, "a")
        with pytest.raises(BadContent):
            list(unixfs.entries(blocks.get, cid))


def test_a_name_that_is_not_utf8_is_unsafe() -> None:
    blocks: Blocks = {}
    root = put(blocks, node([(raw(b""), b"\xff")], unixfs_data(1)))
    with pytest.raises(UnsafeContent):
        list(unixfs.entries(blocks.get, root))


# HAMT


def test_name_hash_is_murmur3_x64_64() -> None:
    # spaolacci/murmur3's Sum64("hello, world"); its own test vector.
    assert hamt.name_hash(b"hello, world") == 0x342FAC623A5EBC8E
    assert hamt.name_hash(b"") == 0


@pytest.mark.parametrize("fanout", [0, 1, 3, 4, 2048, 2**31, 2**63])
def test_fanouts_kubo_does_not_read_are_refused(fanout: int) -> None:
    with pytest.raises(BadContent):
        hamt.root_position(hamt.MURMUR3_X64_64, fanout)


def test_other_hash_functions_are_refused() -> None:
    with pytest.raises(BadContent):
        hamt.root_position(0x12, 256)


@pytest.mark.parametrize("fanout", [8, 16, 64, 256, 1024])
@given(names=st.sets(st.text(min_size=1, max_size=12).filter(str.isprintable), min_size=0, max_size=60))
def test_hamt_round_trip_at_every_fanout(fanout: int, names: set[str]) -> None:
    links = [Link(raw(name.encode()), name.encode(), 1) for name in names]
    root, tsize, shards = hamt.build(links, fanout)
    blocks = dict(shards)
    assert {entry.name for entry in unixfs.entries(blocks.get, root)} == names
    assert all(unixfs.child(blocks.get, root, name) == raw(name.encode()) for name in names)
    assert tsize == len(names) + sum(len(block) for _, block in shards)


def test_two_names_with_one_hash_cannot_be_sharded() -> None:
    link = Link(raw(b""), b"same", 0)
    with pytest.raises(UnsafeContent):
        hamt.build([link, link])


def test_slots_refuse_what_does_not_fit() -> None:
    root, _, shards = hamt.build([Link(raw(b""), b"%d" % i, 0) for i in range(20)], 8)
    top = unixfs.decode(dict(shards)[root])
    position = hamt.root_position(top.hash_type, top.fanout)
    assert len(hamt.slots(position, top.data, top.links)) == len(top.links)
    first = top.links[0]
    for bitfield, links in (
        (top.data, top.links[:-1]),  # a bit too many
        (top.data, (*top.links, first)),  # a link too many
        (b"\x01\xff", top.links),  # wider than the fanout
        (top.data, (Link(first.cid, b"F" + first.name[1:]), *top.links[1:])),  # prefix of another slot
        (top.data, (Link(first.cid, b""), *top.links[1:])),  # no prefix
        (top.data, (Link(first.cid, first.name[:1] + b"elsewhere?"), *top.links[1:])),  # hash leads elsewhere
    ):
        with pytest.raises(BadContent):
            hamt.slots(position, bitfield, links)
    with pytest.raises(BadContent):  # an empty shard below the root
        hamt.slots(position.below(0), b"", ())
    deep = position
    for _ in range(21):
        deep = deep.below(0)
    with pytest.raises(BadContent):  # no hash bits are left
        hamt.slots(deep, b"\x01", (first,))
    with pytest.raises(BadContent):
        hamt.check_below(position, hamt.MURMUR3_X64_64, 256)


@given(st.randoms(use_true_random=False))
def test_damaged_directories_raise_nothing_but_node_errors(rng: random.Random) -> None:
    root, blocks, _ = _directory([f"{i}" for i in range(30)], SHARDED)
    damaged = bytearray(blocks[root])
    for _ in range(rng.randint(1, 3)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    blocks[root] = bytes(damaged)
    with contextlib.suppress(NodeError):
        unixfs.child(blocks.get, root, "7")
    with contextlib.suppress(NodeError):
        list(unixfs.entries(blocks.get, root))
