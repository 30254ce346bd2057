"""Files that are brought before their CID is known: resumed, verified, stored without a second read, accounted."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.build import CHUNK_BYTES, file_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent, Conflict, QuotaExceeded, StorageError
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.hashing import leaves_of
from ipfs_accelerate_node.store.unnamed import store_all

DATA = random.Random(3).randbytes(5 * CHUNK_BYTES + 123)
OID = hashlib.sha256(DATA).hexdigest()
PIECES = [(start, DATA[start : start + CHUNK_BYTES]) for start in range(0, len(DATA), CHUNK_BYTES)]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def cid_of(data: bytes) -> Cid:
    parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    return file_dag(leaves_of([hashlib.sha256(part).digest() for part in parts], len(data))).cid


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


@pytest.mark.parametrize("oid", [OID, git_oid(DATA)])
@pytest.mark.parametrize("order", [1, -1])
def test_pieces_in_any_order_make_a_blob(store: Store, oid: str, order: int) -> None:
    with store.reserve(len(DATA)) as room, store.unnamed.open(oid, len(DATA), room) as file:
        assert file.missing() == [(0, len(DATA))]
        for start, piece in PIECES[::order]:
            file.write(start, piece)
        assert file.check()
        store_all([file])
        assert file.cid == cid_of(DATA)
    stored = store.file(cid_of(DATA))
    assert stored is not None
    assert stored.path.read_bytes() == DATA
    assert (stored.sha256, stored.git_sha1) == (bytes.fromhex(OID), bytes.fromhex(git_oid(DATA)))
    assert stored.path.stat().st_mode & 0o777 == 0o400
    assert os.listdir(store.root / "unnamed") == []
    assert store.used_bytes() == len(DATA)


def test_torn_pieces_are_hashed_as_well(store: Store) -> None:
    cuts = [0, 10, CHUNK_BYTES - 1, CHUNK_BYTES + 7, 3 * CHUNK_BYTES, len(DATA) - 1, len(DATA)]
    pieces = [(a, DATA[a:b]) for a, b in itertools.pairwise(cuts)]
    random.Random(4).shuffle(pieces)
    with store.reserve(0), store.unnamed.open(OID, len(DATA)) as file:
        for start, piece in pieces:
            file.write(start, piece)
        store_all([file])
        assert file.cid == cid_of(DATA)


def test_an_empty_file(store: Store) -> None:
    with store.reserve(0), store.unnamed.open(git_oid(b""), 0) as file:
        store_all([file])
        assert file.cid == Cid.of(b"")


def test_wrong_bytes_are_no_blob(store: Store) -> None:
    with store.reserve(0), store.unnamed.open(OID, len(DATA)) as file:
        file.write(0, b"X" + PIECES[0][1][1:])
        for start, piece in PIECES[1:]:
            file.write(start, piece)
        assert not file.check()
        assert file.actual != OID
        with pytest.raises(BadContent):
            store_all([file])
        file.clear()
        assert (file.received_bytes, file.missing()) == (0, [(0, len(DATA))])
        for start, piece in PIECES:
            file.write(start, piece)
        assert file.check()
    with pytest.raises(BadContent), store.unnamed.open(OID, len(DATA)) as again:
        again.write(len(DATA) - 1, b"two")


def test_what_came_is_there_at_the_next_start(tmp_path: Path) -> None:
    with Store.open(tmp_path) as before, before.unnamed.open(OID, len(DATA)) as file:
        for start, piece in PIECES[1:3]:
            file.write(start, piece)
    with Store.open(tmp_path) as store:
        assert store.unnamed.brought(OID, len(DATA)) == 2 * CHUNK_BYTES
        assert store.used_bytes() == 2 * CHUNK_BYTES
        with store.reserve(0), store.unnamed.open(OID, len(DATA)) as file:
            assert file.missing() == [(0, CHUNK_BYTES), (3 * CHUNK_BYTES, len(DATA))]
            for start, piece in (PIECES[0], *PIECES[3:]):
                file.write(start, piece)
            store_all([file])
        assert store.of_oid(bytes.fromhex(OID), len(DATA)) is not None


def _killed(cache: Path, failpoint: str) -> None:
    with Store.open(cache, failpoints=failpoint) as store, store.reserve(0):
        with store.unnamed.open(OID, len(DATA)) as file:
            for start, piece in PIECES[:2]:
                file.write(start, piece)
            file.sync()
            for start, piece in PIECES[2:]:
                file.write(start, piece)
            store_all([file])


@pytest.mark.parametrize(
    ("failpoint", "here"),
    [
        ("unnamed.write=kill@2", {0}),
        ("unnamed.sync=kill@1", {0}),
        ("unnamed.before_record=kill@1", {0}),
        ("unnamed.write=kill@4", {2}),
        ("unnamed.before_fsync=kill", {2}),
        ("blob.before_rename=kill", {2, 6}),
        ("blob.after_rename=kill", {0}),
    ],
)
def test_a_kill_at_any_moment_loses_only_what_was_not_synced(tmp_path: Path, failpoint: str, here: set[int]) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(tmp_path / "cache", failpoint))
    process.start()
    process.join(15)
    assert process.exitcode == -signal.SIGKILL
    with Store.open(tmp_path / "cache") as store:
        brought = store.unnamed.brought(OID, len(DATA))
        assert brought in {min(count * CHUNK_BYTES, len(DATA)) for count in here}
        with store.reserve(0), store.unnamed.open(OID, len(DATA)) as file:
            for start, stop in file.missing():
                file.write(start, DATA[start:stop])
            assert file.check()
            store_all([file])
        stored = store.of_oid(bytes.fromhex(OID), len(DATA))
        assert stored is not None
        assert stored.path.read_bytes() == DATA


def test_only_one_brings_a_file(store: Store) -> None:
    with store.unnamed.open(OID, len(DATA)):
        with pytest.raises(Conflict):
            store.unnamed.open(OID, len(DATA))
    store.unnamed.open(OID, len(DATA)).close()


def test_it_counts_against_the_quota_and_goes_when_room_is_needed(tmp_path: Path) -> None:
    with Store.open(tmp_path, quota_bytes=len(DATA)) as store:
        with pytest.raises(QuotaExceeded):
            store.unnamed.open(OID, len(DATA) + 1)
        with store.unnamed.open(OID, len(DATA)) as file:
            file.write(*PIECES[0])
            with pytest.raises(QuotaExceeded):
                store.reserve(1)
        assert store.used_bytes() == CHUNK_BYTES
        with store.reserve(len(DATA)):
            assert store.unnamed.brought(OID, len(DATA)) == 0
        with store.unnamed.open(OID, len(DATA)) as file:
            file.write(*PIECES[0])
        assert store.gc().freed_bytes == CHUNK_BYTES
        assert store.used_bytes() == 0


def test_a_failed_sync_forgets_what_it_did_not_write(tmp_path: Path) -> None:
    with Store.open(tmp_path, failpoints="unnamed.sync=EIO@1") as store:
        with store.reserve(0), store.unnamed.open(OID, len(DATA)) as file:
            for start, piece in PIECES:
                file.write(start, piece)
            with pytest.raises(StorageError):
                file.sync()
            assert file.missing() == [(0, len(DATA))]
            for start, piece in PIECES:
                file.write(start, piece)
            store_all([file])
            assert file.cid == cid_of(DATA)


def test_its_bytes_become_those_of_the_cid_leaf_by_leaf(store: Store) -> None:
    """Nothing in it is proven: a leaf that is wrong is fetched."""
    built = file_dag(leaves_of([hashlib.sha256(piece).digest() for _, piece in PIECES], len(DATA)))
    with store.unnamed.open(OID, len(DATA)) as file:
        file.write(*PIECES[0])
        file.write(CHUNK_BYTES, bytes(CHUNK_BYTES))
        file.write(*PIECES[2])
    assert store.unnamed.name(OID, built.cid)
    assert not store.unnamed.name(OID, built.cid)
    with store.partial(built.cid, len(DATA)) as part:
        assert part.missing(built.leaves) == [built.leaves[1], *built.leaves[3:]]
    assert os.listdir(store.root / "unnamed") == []
