"""DAGs that lie, explode or hold what is refused: the U rows of the bad-input catalogue, each with its code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from ipfs_accelerate_node.content import hamt
from ipfs_accelerate_node.content.build import Profile, directory_dag
from ipfs_accelerate_node.content.cid import DAG_CBOR, IDENTITY, RAW, Cid
from ipfs_accelerate_node.content.dagpb import Link
from ipfs_accelerate_node.content.unixfs import Entry
from ipfs_accelerate_node.content.walk import DagWalk
from ipfs_accelerate_node.errors import BadContent, NodeError, QuotaExceeded, UnsafeContent
from tests.support.dags import (
    FILE,
    Blocks,
    node,
    put,
    put_directory,
    put_file,
    put_leaf,
    put_raw,
    raw,
    unixfs_data,
    walk,
)

Maker = Callable[[Blocks], Cid]


def bad(code: str, identifier: str, maker: Maker, error: type[NodeError] = BadContent) -> object:
    return pytest.param(maker, error, code, id=identifier)


def shard(bitfield: bytes, links: list[tuple[Cid, bytes]], fanout: int = 256, hash_type: int = 0x22) -> bytes:
    return node(links, unixfs_data(5, bitfield, None, (), fanout, hash_type))


def empty_shard(fanout: int, blocks: Blocks) -> Cid:
    return put(blocks, shard(b"", [], fanout))


def in_directory(name: bytes) -> Maker:
    return lambda blocks: put_directory(blocks, [(b"ok", raw(b"")), (name, raw(b""))])


def chain(blocks: Blocks) -> Cid:
    part = put_leaf(blocks, b"x")
    for _ in range(10_000):
        part = put_file(blocks, [part])
    return part[0]


def nested_directories(blocks: Blocks) -> Cid:
    cid = put_directory(blocks, [])
    for _ in range(200):
        cid = put_directory(blocks, [(b"d", cid)])
    return cid


def zero_byte_bomb(blocks: Blocks) -> Cid:
    """A billion empty parts in a few KiB: bytes stop nothing here."""
    part: tuple[Cid, int] = (put(blocks, node([], unixfs_data(FILE, None, 0))), 0)
    for _ in range(3):
        part = put_file(blocks, [part] * 1000)
    return part[0]


def one_byte_bomb(blocks: Blocks) -> Cid:
    part = put_leaf(blocks, b"x")
    for _ in range(4):
        part = put_file(blocks, [part] * 1000)
    return part[0]


def directory_bomb(blocks: Blocks) -> Cid:
    cid = put_directory(blocks, [])
    for _ in range(20):
        cid = put_directory(blocks, [(b"%d" % i, cid) for i in range(100)])
    return cid


def large_directory(blocks: Blocks) -> Cid:
    return put_directory(blocks, [(b"%06d" % i, raw(b"")) for i in range(12_000)])


def large_sharded_directory(blocks: Blocks) -> Cid:
    built = directory_dag([Entry(f"{i:06}", raw(b""), 0) for i in range(12_000)])
    blocks.update(built.nodes)
    assert len(built.nodes) > 10
    return built.cid


def repeating_shard(blocks: Blocks) -> Cid:
    """A shard that looks like its own child: the same child shard in every slot."""
    child = put(blocks, shard(b"\x01", [(raw(b""), b"00name")]))
    links = [(child, b"%02X" % slot) for slot in range(256)]
    return put(blocks, shard(b"\xff" * 32, links))


def foreign_shard(blocks: Blocks) -> Cid:
    inner, _, shards = hamt.build([Link(raw(b""), b"%d" % i) for i in range(9)], 8)
    blocks.update(shards)
    return put(blocks, shard(b"\x01", [(inner, b"00")]))


def one_slot(name: bytes) -> tuple[bytes, list[tuple[Cid, bytes]]]:
    """Bitfield and links of a root shard with that one entry, in the slot its hash says."""
    slot = hamt.name_hash(name) >> 56
    return (1 << slot).to_bytes(slot // 8 + 1, "big"), [(raw(b""), b"%02X" % slot + name)]


def case_twins_in_shards(blocks: Blocks) -> Cid:
    names = ["model.bin", "Model.bin", *(str(i) for i in range(300))]
    built = directory_dag([Entry(name, raw(b""), 0) for name in names], Profile(hamt_threshold=0))
    blocks.update(built.nodes)
    return built.cid


BAD = [
    bad("bad_dag", "U1 not dag-pb", lambda b: put(b, b"\xff\xff")),
    bad("bad_dag", "U1 no UnixFS", lambda b: put(b, b"")),
    bad("bad_dag", "U2 blocksize missing", lambda b: put(b, node([(raw(b"x"), b"")], unixfs_data(FILE, None, 1)))),
    bad("bad_dag", "U2 filesize lies", lambda b: put(b, node([(raw(b"x"), b"")], unixfs_data(FILE, None, 9, [1])))),
    bad("bad_dag", "U2 child is larger", lambda b: put_file(b, [(put_leaf(b, b"four")[0], 3)])[0]),
    bad("bad_dag", "U2 child is smaller", lambda b: put_file(b, [(put_leaf(b, b"four")[0], 5)])[0]),
    bad("bad_dag", "U2 inline child is larger", lambda b: put_file(b, [(Cid.of(b"four", RAW, IDENTITY), 3)])[0]),
    bad("quota_exceeded", "U3 2**63", lambda b: put_file(b, [(raw(b"x"), 2**63)])[0], QuotaExceeded),
    bad(
        "quota_exceeded",
        "U3 a petabyte, and nothing else right",
        lambda b: put(b, node([], unixfs_data(FILE, b"", 2**63, [1, 2]))),
        QuotaExceeded,
    ),
    bad("bad_dag", "U5 of empty parts", zero_byte_bomb),
    bad("bad_dag", "U5 of one byte", one_byte_bomb),
    bad("bad_dag", "U5 of directories", directory_bomb),
    bad("bad_dag", "U6 chain of files", chain),
    bad("bad_dag", "U6 chain of directories", nested_directories),
    *[
        bad("invalid_path", f"U7 {name[:12]!r}", in_directory(name), UnsafeContent)
        for name in (b"..", b".", b"", b"a/b", b"a\\b", b"a\0b", b"C:x", b"CON", b"x" * 256, b"\xff\xfe")
    ],
    bad(
        "invalid_path",
        "U7 in a shard",
        lambda b: put(b, shard(*one_slot(b"../x"))),
        UnsafeContent,
    ),
    bad("invalid_path", "U8 case", lambda b: put_directory(b, [(b"M", raw(b"")), (b"m", raw(b""))]), UnsafeContent),
    bad(
        "invalid_path",
        "U8 normal forms",
        lambda b: put_directory(b, [(n.encode(), raw(b"")) for n in ("caf\u00e9", "cafe\u0301")]),
        UnsafeContent,
    ),
    bad("invalid_path", "U8 twins", lambda b: put_directory(b, [(b"m", raw(b""))] * 2), UnsafeContent),
    bad("invalid_path", "U8 across shards", case_twins_in_shards, UnsafeContent),
    bad("unsafe_file", "U9 symlink", lambda b: put(b, node([], unixfs_data(4, b"/etc/passwd"))), UnsafeContent),
    bad(
        "unsafe_file",
        "U9 symlink in a directory",
        lambda b: put_directory(b, [(b"s", put(b, node([], unixfs_data(4, b"x"))))]),
        UnsafeContent,
    ),
    bad("bad_dag", "U9 unknown type", lambda b: put(b, node([], unixfs_data(6)))),
    bad("bad_dag", "U9 metadata", lambda b: put(b, node([(raw(b""), b"")], unixfs_data(3)))),
    bad("bad_dag", "U10 raw with links", lambda b: put(b, node([(raw(b"x"), b"")], unixfs_data(0, None, 1, [1])))),
    bad(
        "unsafe_file",
        "U10 symlink with links",
        lambda b: put(b, node([(raw(b"x"), b"")], unixfs_data(4, b"t"))),
        UnsafeContent,
    ),
    bad("bad_dag", "U10 named part", lambda b: put(b, node([(raw(b"x"), b"n")], unixfs_data(FILE, None, 1, [1])))),
    *[bad("bad_dag", f"U11 fanout {fanout}", partial(empty_shard, fanout)) for fanout in (0, 3, 2048, 2**31)],
    bad("bad_dag", "U11 hash function", lambda b: put(b, shard(b"", [], 256, 0x12))),
    bad("bad_dag", "U11 bitfield", lambda b: put(b, shard(b"\x03", [(raw(b""), b"00a")]))),
    bad("bad_dag", "U11 prefix", lambda b: put(b, shard(b"\x01", [(raw(b""), b"01a")]))),
    bad("bad_dag", "U11 hash leads elsewhere", lambda b: put(b, shard(b"\x01", [(raw(b""), b"00a")]))),
    bad("bad_dag", "U11 the same shard everywhere", repeating_shard),
    bad("bad_dag", "U11 other fanout below", foreign_shard),
    bad("bad_dag", "U11 a directory for a shard", lambda b: put(b, shard(b"\x01", [(put_directory(b, []), b"00")]))),
    bad("unsupported_codec", "U11 a raw block for a shard", lambda b: put(b, shard(b"\x01", [(raw(b""), b"00")]))),
    bad("unsupported_codec", "U12 root", lambda b: Cid.of(b"\xa0", DAG_CBOR)),
    bad("unsupported_codec", "U12 entry", lambda b: put_directory(b, [(b"x", Cid.of(b"\xa0", DAG_CBOR))])),
    bad("unsupported_codec", "U12 part", lambda b: put_file(b, [(Cid.of(b"\xa0", DAG_CBOR), 1)])[0]),
    bad("bad_dag", "U13 entries", large_directory),
    bad("bad_dag", "U13 sharded entries", large_sharded_directory),
    bad("bad_dag", "a directory inside a file", lambda b: put_file(b, [(put_directory(b, []), 0)])[0]),
    bad("bad_dag", "a symlink inside a file", lambda b: put_file(b, [(put(b, node([], unixfs_data(4))), 0)])[0]),
    bad("block_too_large", "a leaf over 2 MiB declared", lambda b: put_file(b, [(raw(b"x"), (2 << 20) + 1)])[0]),
    bad("block_too_large", "a block over 2 MiB", lambda b: put_raw(b, bytes((2 << 20) + 1))[0]),
]


@pytest.mark.parametrize(("maker", "error", "code"), BAD)
def test_bad_dags_are_refused_with_their_code(maker: Maker, error: type[NodeError], code: str) -> None:
    blocks: Blocks = {raw(b""): b""}
    root = maker(blocks)
    with pytest.raises(error) as caught:
        walk(root, blocks)
    assert type(caught.value) is error
    assert caught.value.code == code


def test_exabytes_in_kilobytes_are_refused_before_anything_is_fetched() -> None:  # U3, U5
    blocks: Blocks = {}
    part = put_leaf(blocks, b"x" * 1000)
    for _ in range(5):
        part = put_file(blocks, [part] * 1000)
    assert part[1] == 10**18
    walking = DagWalk(part[0], max_bytes=10**12)
    with pytest.raises(QuotaExceeded):
        walking.give(part[0], blocks[part[0]])


def test_max_bytes_counts_every_file_and_admits_the_exact_size() -> None:
    blocks: Blocks = {}
    file, size = put_file(blocks, [put_raw(blocks, b"abc"), put_leaf(blocks, b"de")])
    root = put_directory(blocks, [(b"1", file), (b"2", file), (b"3", put_raw(blocks, b"f")[0])])
    total = 2 * size + 1
    assert walk(root, blocks, max_bytes=total).plan.size_bytes == total
    with pytest.raises(QuotaExceeded) as caught:
        walk(root, blocks, max_bytes=total - 1)
    assert caught.value.code == "quota_exceeded"


def test_max_entries_and_depth_admit_their_exact_number() -> None:
    blocks: Blocks = {raw(b""): b""}
    root = put_directory(blocks, [(b"%d" % i, raw(b"")) for i in range(5)])
    assert len(walk(root, blocks, max_entries=5).files) == 5
    with pytest.raises(BadContent):
        walk(root, blocks, max_entries=4)
    assert walk(root, blocks, max_depth=2).plan
    with pytest.raises(BadContent):
        walk(root, blocks, max_depth=1)
