"""The walk over DAGs made by hand: what is read, order, duplicates, memory. Bad DAGs: test_walk_bad_dags.py."""

from __future__ import annotations

import contextlib
import itertools
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.content.build import Profile, directory_dag, file_dag, tree_dag
from ipfs_accelerate_node.content.cid import DAG_PB, IDENTITY, RAW, Cid
from ipfs_accelerate_node.content.dagpb import Link, encode
from ipfs_accelerate_node.content.unixfs import Entry
from ipfs_accelerate_node.content.walk import NOTHING, DagWalk
from ipfs_accelerate_node.errors import NodeError
from tests.support.dags import (
    DIRECTORY,
    FILE,
    Blocks,
    cut,
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

# What is read


def test_a_raw_block_is_a_file_and_comes_back_at_once() -> None:
    walking = DagWalk(raw(b"data"))
    assert not walking.done
    assert walking.wanted() == [raw(b"data")]
    given = walking.give(raw(b"data"), b"data")
    assert walking.done
    assert not given.node
    (payload,) = given.payloads
    assert (payload.file.path, payload.file.cid, payload.file.size) == ("", raw(b"data"), 4)
    assert (payload.leaf.offset, payload.payload, payload.leaf.prefix) == (0, b"data", b"")


def test_raw_leaves_of_a_file_node_are_listed_not_wanted() -> None:
    blocks: Blocks = {}
    root, _ = put_file(blocks, [put_raw(blocks, b"abc"), put_raw(blocks, b"de")])
    walking = DagWalk(root)
    given = walking.give(root, blocks[root])
    assert given.node
    assert walking.done
    assert [(leaf.cid, leaf.offset, leaf.length) for leaf in walking.plan().files[0].leaves] == [
        (raw(b"abc"), 0, 3),
        (raw(b"de"), 3, 2),
    ]


def test_dag_pb_leaves_are_no_nodes_and_their_wrap_remakes_them() -> None:
    blocks: Blocks = {}
    for kind in (0, FILE):
        root, _ = put_file(blocks, [put_leaf(blocks, b"abc", kind), put_leaf(blocks, b"de", kind)])
        walking = DagWalk(root)
        assert walking.give(root, blocks[root]).node
        for cid in walking.wanted():
            given = walking.give(cid, blocks[cid])
            assert not given.node
            assert given.payloads[0].leaf.wrap(given.payloads[0].payload) == blocks[cid]
        assert walking.nodes == [root]
        assert walk(root, blocks).files == {"": b"abcde"}


@pytest.mark.parametrize("data_first", [False, True])
def test_an_inner_node_with_data_is_node_and_leaf(data_first: bool) -> None:
    blocks: Blocks = {}
    parts = [put_raw(blocks, b"-raw-"), put_leaf(blocks, b"pb")]
    root, _ = put_file(blocks, parts, b"own")
    if data_first:
        data = unixfs_data(FILE, b"own", 10, [5, 2])
        root = put(blocks, encode([], data) + encode([Link(cid) for cid, _ in parts], None))
    walking = DagWalk(root)
    given = walking.give(root, blocks[root])
    assert given.node
    assert [payload.payload for payload in given.payloads] == [b"own"]
    assert walk(root, blocks).files == {"": b"own-raw-pb"}


def test_empty_files_of_every_kind() -> None:
    blocks: Blocks = {}
    no_data = put(blocks, node([], unixfs_data(FILE)))
    zero = put(blocks, node([], unixfs_data(FILE, b"", 0)))
    inline = Cid.of(b"", RAW, IDENTITY)
    of_empty, _ = put_file(blocks, [put_raw(blocks, b""), (zero, 0), (inline, 0)])
    root = put_directory(blocks, [(b"1", no_data), (b"2", zero), (b"3", raw(b"")), (b"4", inline), (b"5", of_empty)])
    walked = walk(root, blocks)
    assert walked.files == dict.fromkeys("12345", b"")
    leaves = {file.path: len(file.leaves) for file in walked.plan.files}
    assert leaves == {"1": 0, "2": 0, "3": 1, "4": 1, "5": 2}
    assert set(walked.walk.nodes) == {root, no_data, zero, of_empty}, "what has no bytes must be kept as a node"


def test_empty_parts_keep_the_leaves_in_order() -> None:
    blocks: Blocks = {}
    root, _ = put_file(blocks, [put_raw(blocks, b"a"), put_raw(blocks, b""), put_leaf(blocks, b"b")])
    assert [leaf.length for leaf in walk(root, blocks).plan.files[0].leaves] == [1, 0, 1]


def test_inline_cids_are_never_wanted() -> None:
    blocks: Blocks = {}
    inline = Cid.of(b"inline!", RAW, IDENTITY)
    inline_pb = Cid.of(node([], unixfs_data(FILE, b"pb", 2)), DAG_PB, IDENTITY)
    inline_directory = Cid.of(node([(inline, b"in")], unixfs_data(DIRECTORY)), DAG_PB, IDENTITY)
    file, _ = put_file(blocks, [(inline, 7), put_leaf(blocks, b"mid"), (inline_pb, 2), (inline, 7)])
    root = put_directory(blocks, [(b"d", inline_directory), (b"f", file), (b"r", inline)])
    walked = walk(root, blocks)
    assert walked.files == {"d/in": b"inline!", "f": b"inline!midpbinline!", "r": b"inline!"}
    assert walked.plan.directories == ("d",)


def test_an_inline_root_opens_with_its_bytes() -> None:
    for root in (
        Cid.of(b"all", RAW, IDENTITY),
        Cid.of(node([], unixfs_data(FILE, b"all", 3)), DAG_PB, IDENTITY),
    ):
        walking = DagWalk(root)
        assert walking.done
        assert [payload.payload for payload in walking.opened.payloads] == [b"all"]
        assert walk(root, {}).files == {"": b"all"}


def test_cidv0_is_wanted_and_planned_in_canonical_form() -> None:
    blocks: Blocks = {}
    leaf, size = put_leaf(blocks, b"abc")
    block = node([(Cid(0, DAG_PB, leaf.multihash), b"")], unixfs_data(FILE, None, size, [size]))
    root = Cid(0, DAG_PB, put(blocks, block).multihash)
    walking = DagWalk(root)
    assert walking.wanted() == [root.canonical]
    walking.give(root, block)
    assert walking.wanted() == [leaf]
    assert walk(root, blocks).plan.root == root.canonical


def test_tsize_is_ignored() -> None:  # U4
    blocks: Blocks = {}
    cid, _ = put_raw(blocks, b"abc")
    lying = encode([Link(cid, b"f", 2**64 - 1)], unixfs_data(DIRECTORY))
    assert walk(put(blocks, lying), blocks).files == {"f": b"abc"}


# Order, duplicates, memory


def tree_blocks() -> tuple[Cid, Blocks, dict[str, bytes]]:
    """Directories, dag-pb and raw leaves at several depths, one file at three places, one leaf in two files."""
    blocks: Blocks = {}
    shared = put_leaf(blocks, b"shared leaf")
    deep, _ = put_file(
        blocks,
        [
            put_file(blocks, [put_leaf(blocks, b"1"), shared, put_leaf(blocks, b"2")]),
            put_file(blocks, [shared, put_raw(blocks, b"raw"), shared]),
            shared,
        ],
    )
    flat, _ = put_file(blocks, [put_leaf(blocks, b"flat"), shared])
    inner = put_directory(blocks, [(b"deep", deep), (b"leaf", shared[0])])
    root = put_directory(blocks, [(b"a", inner), (b"b", flat), (b"c", deep), (b"d", inner), (b"e", raw(b"raw"))])
    of_deep = b"1shared leaf2shared leafrawshared leafshared leaf"
    return (
        root,
        blocks,
        {
            "a/deep": of_deep,
            "a/leaf": b"shared leaf",
            "b": b"flatshared leaf",
            "c": of_deep,
            "d/deep": of_deep,
            "d/leaf": b"shared leaf",
            "e": b"raw",
        },
    )


def test_first_wanted_first_is_depth_first() -> None:
    blocks: Blocks = {}
    leaves = [put_leaf(blocks, bytes((i,))) for i in range(4)]
    left, right = put_file(blocks, leaves[:2]), put_file(blocks, leaves[2:])
    file, _ = put_file(blocks, [left, right])
    root = put_directory(blocks, [(b"a", file), (b"b", raw(b"z"))])
    blocks[raw(b"z")] = b"z"
    given: list[Cid] = []

    def first(wanted: list[Cid]) -> Cid:
        given.append(wanted[0])
        return wanted[0]

    walk(root, blocks, pick=first)
    assert given == [root, file, left[0], leaves[0][0], leaves[1][0], right[0], leaves[2][0], leaves[3][0], raw(b"z")]


def test_wanted_is_distinct_and_bounded() -> None:
    blocks: Blocks = {}
    leaves = [put_leaf(blocks, bytes((i % 7,))) for i in range(50)]
    root, _ = put_file(blocks, leaves)
    walking = DagWalk(root)
    walking.give(root, blocks[root])
    assert walking.wanted(3) == [cid for cid, _ in leaves[:3]]
    assert len(walking.wanted()) == 7
    assert walking.wanted(0) == []


@given(st.randoms(use_true_random=False))
def test_any_order_gives_the_same_plan_and_the_same_bytes(rng: random.Random) -> None:
    root, blocks, files = tree_blocks()
    walked = walk(root, blocks, pick=rng.choice)
    assert walked.files == files
    assert walked.plan == walk(root, blocks).plan


def test_blocks_that_are_not_wanted_change_nothing() -> None:
    root, blocks, files = tree_blocks()
    walking = DagWalk(root)
    assert walking.give(raw(b"stranger"), b"stranger") is NOTHING
    assert walking.give(raw(b"shared leaf"), b"") is NOTHING
    walking.give(root, blocks[root])
    assert walking.give(root, blocks[root]) is NOTHING
    assert walk(root, blocks).files == files


def test_a_block_at_many_known_places_comes_back_for_each() -> None:
    blocks: Blocks = {}
    leaf = put_leaf(blocks, b"x")
    root, _ = put_file(blocks, [leaf, put_leaf(blocks, b"y"), leaf])
    walking = DagWalk(root)
    walking.give(root, blocks[root])
    given = walking.give(leaf[0], blocks[leaf[0]])
    assert [payload.leaf.offset for payload in given.payloads] == [0, 2]


def test_plan_of_an_unfinished_walk_is_refused() -> None:
    with pytest.raises(ValueError, match="still wants"):
        DagWalk(raw(b"x")).plan()


def test_payloads_are_not_kept() -> None:
    """32 MiB in dag-pb leaves pass through; what stays is far below that."""
    leaf_bytes, count = 256 << 10, 128

    def leaf(index: int) -> bytes:
        return node([], unixfs_data(FILE, index.to_bytes(4, "big") * (leaf_bytes // 4), leaf_bytes))

    cids = [Cid.of(leaf(index), DAG_PB) for index in range(count)]
    blocks: Blocks = {}
    root, _ = put_file(blocks, [(cid, leaf_bytes) for cid in cids])
    tracemalloc.start()
    try:
        walking = DagWalk(root)
        walking.give(root, blocks[root])
        passed = sum(
            len(payload.payload)
            for index, cid in enumerate(cids)
            for payload in walking.give(cid, leaf(index)).payloads
        )
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert walking.done
    assert passed == count * leaf_bytes
    assert kept < 1 << 20


def test_much_legitimate_repetition_is_read() -> None:
    """8 MiB of zeros in 32-byte dag-pb leaves: one leaf, one parent, 262,144 places, as sparse files have."""
    blocks: Blocks = {}
    part = put_leaf(blocks, bytes(32))
    for _ in range(2):
        part = put_file(blocks, [part] * 256)
    root, size = put_file(blocks, [part] * 3)
    walking = DagWalk(root)
    while not walking.done:
        for cid in walking.wanted():
            walking.give(cid, blocks[cid])
    (file,) = walking.plan().files
    assert len(file.leaves) == 3 * 256 * 256
    assert file.leaves[-1].offset + 32 == file.size == size


# Nothing but our errors


def _damage(rng: random.Random, block: bytes) -> bytes:
    damaged = bytearray(block)
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(3)
        at = rng.randrange(len(damaged) + (kind == 2)) if damaged else 0
        if kind == 0 and damaged:
            damaged[at] = rng.randrange(256)
        elif kind == 1 and damaged:
            del damaged[at : at + rng.randint(1, 4)]
        else:
            damaged[at:at] = rng.randbytes(rng.randint(1, 4))
    return bytes(damaged)


@settings(max_examples=200)
@given(st.randoms(use_true_random=False))
def test_damaged_blocks_raise_nothing_but_node_errors(rng: random.Random) -> None:
    root, blocks, _ = tree_blocks()
    names = [str(i) for i in range(20)]
    sharded = directory_dag([Entry(name, raw(b"raw"), 0) for name in names], Profile(hamt_threshold=0))
    blocks |= dict(sharded.nodes)
    top = put_directory(blocks, [(b"s", sharded.cid), (b"t", root)])
    victim = rng.choice(list(blocks))
    walking = DagWalk(top)
    with contextlib.suppress(NodeError):
        while not walking.done:
            cid = rng.choice(walking.wanted())
            block = blocks.get(cid)
            if block is None:  # a damaged link leads nowhere; no source has it
                return
            walking.give(cid, _damage(rng, block) if cid == victim else block)
        assert walking.plan().root == top


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([f"{a}/{b}" for a, b in itertools.product("abc", "xyz")]), st.binary(max_size=300), max_size=9
    ),
    st.integers(1, 40),
    st.integers(2, 5),
    st.sampled_from([0, 150, 1 << 18]),
    st.randoms(use_true_random=False),
)
def test_what_is_built_is_what_is_walked(
    files: dict[str, bytes], chunk_bytes: int, width: int, threshold: int, rng: random.Random
) -> None:
    profile = Profile(chunk_bytes, width, threshold)
    built = tree_dag({path: file_dag(cut(data, chunk_bytes), profile) for path, data in files.items()}, ["e"], profile)
    blocks = dict(built.nodes)
    for data in files.values():
        for leaf in cut(data, chunk_bytes):
            blocks[leaf.cid] = data[leaf.offset : leaf.offset + leaf.length]
    walked = walk(built.plan.root, blocks, pick=rng.choice)
    assert walked.plan == built.plan
    assert walked.files == files
