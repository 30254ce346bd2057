from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.errors import BadContent, Conflict, IntegrityError, NotFound, StorageError
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.ranges import Ranges
from tests.support.small_model import CHUNK, SmallModel, bring, foreign_model, random_model

MODEL = random_model(5)
FILE = next(file for file in MODEL.plan.files if file.path == "weights.bin")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "cache")


def payload(leaf: Leaf, model: SmallModel = MODEL) -> bytes:
    return model.blocks[leaf.cid]


def reopened(store: Store) -> Store:
    store.close()
    return Store.open(store.root)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 12))))
def test_ranges_are_a_set_of_bytes(steps: list[tuple[bool, int, int]]) -> None:
    ranges, expected = Ranges(), set()
    for add, start, length in steps:
        if add:
            ranges.add(start, start + length)
            expected |= set(range(start, start + length))
        else:
            ranges.remove(start, start + length)
            expected -= set(range(start, start + length))
    listed = list(ranges)
    assert {byte for start, end in listed for byte in range(start, end)} == expected
    assert all(a[1] < b[0] for a, b in pairwise(listed))
    assert ranges.total() == len(expected)
    for start in range(0, 52, 5):
        assert ranges.covers(start, start + 4) == (set(range(start, start + 4)) <= expected)


def test_leaves_in_any_order_make_the_file(store: Store) -> None:
    part = store.partial(FILE.cid, FILE.size)
    leaves = list(FILE.leaves)
    random.Random(1).shuffle(leaves)
    for leaf in leaves[:3]:
        part.write(leaf, payload(leaf))
    assert part.missing(leaves) == leaves[3:]
    assert part.written_bytes == sum(leaf.length for leaf in leaves[:3])
    assert part.covers(leaves[0].offset, leaves[0].length)
    assert not part.covers(0, FILE.size)
    assert part.sync() == leaves[:3]
    assert part.sync() == []
    with pytest.raises(BadContent) as failed:
        part.commit(FILE)
    assert failed.value.code == "incomplete"
    for leaf in leaves[3:]:
        part.write(leaf, payload(leaf))
    stored = part.commit(FILE)
    assert stored.path.read_bytes() == MODEL.files["weights.bin"]
    assert list((store.root / "partial").iterdir()) == []


def test_leaves_are_served_while_the_file_grows(store: Store) -> None:
    part = store.partial(FILE.cid, FILE.size)
    leaf = FILE.leaves[2]
    assert store.partial_block(leaf.cid) is None
    part.write(leaf, payload(leaf))
    assert store.partial_block(leaf.cid) == payload(leaf)
    assert store.block(leaf.cid) is None
    assert not store.has(leaf.cid)


def test_what_was_brought_survives_a_restart(store: Store) -> None:
    part = store.partial(FILE.cid, FILE.size)
    for leaf in FILE.leaves[:2]:
        part.write(leaf, payload(leaf))
    part.sync()
    part.write(FILE.leaves[4], payload(FILE.leaves[4]))
    again = reopened(store)
    part = again.partial(FILE.cid, FILE.size)
    assert part.covers(0, 2 * CHUNK)
    assert not part.covers(FILE.leaves[4].offset, 1)  # not synced, so not in the record …
    assert part.missing(FILE.leaves) == [FILE.leaves[2], FILE.leaves[3], FILE.leaves[5]]  # … but found by its hash
    assert part.covers(FILE.leaves[4].offset, CHUNK)


def test_unrecorded_bytes_that_are_wrong_do_not_count(store: Store) -> None:
    part = store.partial(FILE.cid, FILE.size)
    part.write(FILE.leaves[0], payload(FILE.leaves[0]))
    part.sync()
    store.close()
    with (store.root / "partial" / str(FILE.cid)).open("r+b") as data:
        data.seek(CHUNK)
        data.write(os.urandom(3 * CHUNK))
    part = Store.open(store.root).partial(FILE.cid, FILE.size)
    assert part.missing(FILE.leaves) == list(FILE.leaves[1:])


@pytest.mark.parametrize("cut", range(1, 21))
def test_torn_record_claims_less_never_more(store: Store, cut: int) -> None:
    part = store.partial(FILE.cid, FILE.size)
    for leaf in FILE.leaves[:2]:
        part.write(leaf, payload(leaf))
        part.sync()
    store.close()
    record = store.root / "partial" / f"{FILE.cid}.have"
    record.write_bytes(record.read_bytes()[:-cut])
    part = Store.open(store.root).partial(FILE.cid, FILE.size)
    assert part.covers(0, CHUNK)
    assert not part.covers(CHUNK, CHUNK)


def test_record_of_another_size_is_not_believed(store: Store) -> None:
    part = store.partial(FILE.cid, FILE.size)
    part.write(FILE.leaves[0], payload(FILE.leaves[0]))
    part.sync()
    with pytest.raises(Conflict):
        store.partial(FILE.cid, FILE.size + 1)
    part = reopened(store).partial(FILE.cid, FILE.size + 1)
    assert not part.covers(0, 1)


@pytest.mark.parametrize("failpoint", ["partial.sync=EIO@1", "partial.before_record=EIO@1"])
def test_failed_sync_takes_back_what_it_covered(tmp_path: Path, failpoint: str) -> None:
    store = Store.open(tmp_path, failpoints=failpoint)
    part = store.partial(FILE.cid, FILE.size)
    for leaf in FILE.leaves:
        part.write(leaf, payload(leaf))
    with pytest.raises(StorageError):
        part.sync()
    assert part.missing(FILE.leaves) == list(FILE.leaves)
    for leaf in FILE.leaves:
        part.write(leaf, payload(leaf))
    assert part.commit(FILE).path.read_bytes() == MODEL.files["weights.bin"]


def test_leaf_that_does_not_fit_is_refused(store: Store) -> None:
    part = store.partial(FILE.cid, FILE.size)
    with pytest.raises(BadContent):
        part.write(FILE.leaves[0], b"short")
    with pytest.raises(BadContent):
        part.write(Leaf(Cid.of(b"12"), FILE.size - 1, 2), b"12")


def test_two_users_share_one_partial_file(store: Store) -> None:
    one, two = store.partial(FILE.cid, FILE.size), store.partial(FILE.cid, FILE.size)
    for leaf in FILE.leaves:
        one.write(leaf, payload(leaf))
    assert two.missing(FILE.leaves) == []
    one.close()
    assert two.commit(FILE) == one.commit(FILE)
    two.write(FILE.leaves[0], payload(FILE.leaves[0]))
    two.close()
    assert store.used_bytes() == FILE.size


def test_discard_gives_back_disk_and_room(store: Store) -> None:
    part = store.partial(FILE.cid, FILE.size)
    part.write(FILE.leaves[0], payload(FILE.leaves[0]))
    assert store.used_bytes() == FILE.size
    part.discard()
    assert store.used_bytes() == 0
    assert list((store.root / "partial").iterdir()) == []
    with pytest.raises(StorageError):
        part.write(FILE.leaves[1], payload(FILE.leaves[1]))


def test_copies_from_a_stored_file_are_verified(store: Store) -> None:
    """Of another root that shares leaves, also where the leaf there is wrapped in dag-pb."""
    bring(store, MODEL)
    place = store.leaf_at(FILE.leaves[1].cid)
    assert place is not None
    other = FilePlan("other.bin", Cid.of(b"a file of that leaf twice"), 2 * CHUNK, ())
    part = store.partial(other.cid, other.size)
    part.copy_from([Leaf(FILE.leaves[1].cid, CHUNK, CHUNK)], place)
    assert part.block(FILE.leaves[1].cid) == payload(FILE.leaves[1])

    path = store.root / "blobs" / str(FILE.cid)
    path.chmod(0o600)
    with path.open("r+b") as blob:
        blob.seek(CHUNK + 3)
        blob.write(b"\0" if MODEL.files["weights.bin"][CHUNK + 3] else b"\1")
    with pytest.raises(IntegrityError):
        part.copy_from([Leaf(FILE.leaves[1].cid, 0, CHUNK)], place)
    assert not part.covers(0, 1)
    assert store.file(FILE.cid) is None
    with pytest.raises(NotFound):
        part.copy_from([Leaf(FILE.leaves[1].cid, 0, CHUNK)], place)


def test_wrapped_leaves_give_their_block_back(store: Store) -> None:
    model = foreign_model(2)
    file = next(file for file in model.plan.files if file.path == "big.bin")
    part = store.partial(file.cid, file.size)
    leaf = file.leaves[1]
    block = model.blocks[leaf.cid]
    part.write(leaf, block[len(leaf.prefix) : len(block) - len(leaf.suffix)])
    assert part.block(leaf.cid) == block
    part.close()
    part = reopened(store).partial(file.cid, file.size)
    assert part.missing(file.leaves) == [file.leaves[0], file.leaves[2]]
