"""Building roots: shapes, sizes and refusals. That the roots are Kubo's is shown in test_roots_kubo.py."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.content import dagpb, unixfs
from ipfs_accelerate_node.content.build import (
    HAMT_THRESHOLD,
    UNIXFS_V1_2025,
    BuiltFile,
    Profile,
    directory_dag,
    file_dag,
    tree_dag,
)
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.content.unixfs import Entry, NodeType
from ipfs_accelerate_node.errors import BadContent, UnsafeContent
from tests.support.dags import cut, names_filling, raw, walk

SMALL = Profile(chunk_bytes=10, width=3)
EMPTY_FILE = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
EMPTY_DIRECTORY = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"


def small_file(data: bytes) -> BuiltFile:
    return file_dag(cut(data, SMALL.chunk_bytes), SMALL)


def test_well_known_roots() -> None:
    assert str(file_dag([]).cid) == EMPTY_FILE
    assert str(directory_dag([]).cid) == EMPTY_DIRECTORY
    assert str(tree_dag({}).plan.root) == EMPTY_DIRECTORY


def test_the_empty_file_is_one_empty_leaf() -> None:
    built = file_dag([])
    assert built.leaves == (Leaf(raw(b""), 0, 0),)
    assert (built.size, built.dag_bytes, built.nodes) == (0, 0, ())


# Leaves and expected node counts at width 3: one leaf is the root itself; a full parent; one more; a full grandparent.
@pytest.mark.parametrize(("leaves", "nodes"), [(1, 0), (2, 1), (3, 1), (4, 3), (9, 4), (10, 7), (27, 13), (28, 19)])
def test_tree_grows_a_level_when_full(leaves: int, nodes: int) -> None:
    data = bytes(range(256))[: leaves * 10 - 3] + bytes(max(0, leaves * 10 - 3 - 256))
    built = small_file(data)
    assert len(built.leaves) == leaves
    assert built.size == len(data)
    assert len(built.nodes) == len(dict(built.nodes)) <= nodes
    if leaves <= 10:
        assert len(built.nodes) == nodes
        assert built.dag_bytes == len(data) + sum(len(block) for _, block in built.nodes)


def test_nodes_come_children_first_and_end_with_the_root() -> None:
    built = small_file(bytes(range(250)))
    seen: set[Cid] = set()
    for cid, block in built.nodes:
        assert cid == Cid.of(block, DAG_PB)
        assert all(child in seen for child in unixfs.links(block, DAG_PB) if child.codec == DAG_PB)
        seen.add(cid)
    assert built.nodes[-1][0] == built.cid


@given(st.binary(max_size=900))
def test_built_files_walk_back_to_their_bytes(data: bytes) -> None:
    built = small_file(data)
    blocks = dict(built.nodes) | {leaf.cid: data[leaf.offset :][: leaf.length] for leaf in built.leaves}
    walked = walk(built.cid, blocks)
    assert walked.files == {"": data}
    assert walked.plan.files == (FilePlan("", built.cid, built.size, built.leaves),)


def test_leaves_must_be_raw_and_without_gaps() -> None:
    with pytest.raises(ValueError, match="a raw leaf at 0"):
        file_dag([Leaf(raw(b"a"), 1, 1)])
    with pytest.raises(ValueError, match="a raw leaf at 1"):
        file_dag([Leaf(raw(b"a"), 0, 1), Leaf(raw(b"b"), 2, 1)])
    with pytest.raises(ValueError, match="a raw leaf"):
        file_dag([Leaf(Cid.of(b"", DAG_PB), 0, 1)])


def directory_of(block_bytes: int) -> list[Entry]:
    return [Entry(name, raw(b""), 0) for name in names_filling(block_bytes - 4)]


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_directory_is_sharded_above_the_threshold_not_at_it(over: int) -> None:
    built = directory_dag(directory_of(HAMT_THRESHOLD + over))
    root = unixfs.decode(dict(built.nodes)[built.cid])
    assert root.type is (NodeType.HAMT_SHARD if over > 0 else NodeType.DIRECTORY)
    if over <= 0:
        assert len(built.nodes[0][1]) == HAMT_THRESHOLD + over == built.tsize


def test_order_of_entries_does_not_matter() -> None:
    entries = directory_of(HAMT_THRESHOLD + 1)
    for some in (entries, entries[:50]):
        assert directory_dag(some) == directory_dag(some[::-1])


def test_tree_lists_files_by_path_and_directories_parents_first() -> None:
    files = {path: small_file(path.encode()) for path in ("b/c/d", "b-/x", "a", "b/c.txt")}
    built = tree_dag(files, ["e", "b/f/g"])
    assert [file.path for file in built.plan.files] == ["a", "b-/x", "b/c.txt", "b/c/d"]
    assert built.plan.directories == ("b", "b-", "b/c", "b/f", "b/f/g", "e")
    assert built.plan.size_bytes == sum(len(path) for path in files)
    assert built.nodes[-1][0] == built.plan.root
    root = dagpb.decode(built.nodes[-1][1])
    assert [link.name for link in root.links] == [b"a", b"b", b"b-", b"e"]


def test_tree_walks_back_to_its_plan() -> None:
    files = {f"layer-{i}/w.bin": small_file(bytes(range(i)) * 3) for i in range(12)} | {"empty": file_dag([])}
    profile = Profile(10, 3, hamt_threshold=300)
    built = tree_dag(files, ["none"], profile)
    blocks = dict(built.nodes)
    for path, file in files.items():
        if not file.nodes:
            data = bytes(range(int(path[6:-6]))) * 3 if path != "empty" else b""
            blocks[file.cid] = data
    for cid in {leaf.cid for file in files.values() for leaf in file.leaves} - set(blocks):
        for i in range(12):
            data = bytes(range(i)) * 3
            blocks.update({leaf.cid: data[leaf.offset :][: leaf.length] for leaf in cut(data, 10)})
        assert cid in blocks
    assert walk(built.plan.root, blocks).plan == built.plan


@pytest.mark.parametrize(
    ("files", "directories"),
    [
        (["../x"], []),
        (["a//b"], []),
        (["/a"], []),
        (["CON"], []),
        (["a", "a/b"], []),
        (["A", "a"], []),
        (["caf\u00e9", "cafe\u0301"], []),
        (["a"], ["a"]),
        ([], ["x", "X"]),
    ],
)
def test_unsafe_trees_are_refused(files: list[str], directories: list[str]) -> None:
    with pytest.raises(UnsafeContent) as caught:
        tree_dag({path: small_file(b"") for path in files}, directories)
    assert caught.value.code == "invalid_path"


def test_a_hundred_thousand_leaves_take_less_than_a_second() -> None:
    one = raw(b"the same leaf often, as only the tree is measured")
    leaves = [Leaf(one, index << 20, 1 << 20) for index in range(100_000)]
    spent = []
    for _ in range(3):  # a machine that does other things has colder caches
        start = time.process_time()
        built = file_dag(leaves, UNIXFS_V1_2025)
        spent.append(time.process_time() - start)
    assert min(spent) < 1
    assert built.size == 100_000 << 20


@settings(max_examples=50)
@given(
    st.binary(min_size=1, max_size=60),
    st.binary(max_size=5),
    st.binary(max_size=5),
    st.integers(-3, 3),
)
def test_unwrap_is_the_inverse_of_wrap_and_takes_no_other_length(
    payload: bytes, prefix: bytes, suffix: bytes, wrong_by: int
) -> None:
    leaf = Leaf(raw(b""), 0, len(payload), prefix, suffix)
    assert leaf.unwrap(leaf.wrap(payload)) == payload
    if wrong_by:
        lying = Leaf(leaf.cid, 0, len(payload) + wrong_by, prefix, suffix)
        with pytest.raises(BadContent):
            lying.unwrap(leaf.wrap(payload))
