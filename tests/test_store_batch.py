"""Whole files that become blobs in one go."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import BadContent, StorageError
from ipfs_accelerate_node.store import Store, commit_all
from tests.support.small_model import CHUNK, FROM_CID, small_model, whole_part

MODEL = small_model({f"{number:03}.json": b"%d" % number * 40 for number in range(30)})
FILES = MODEL.plan.files


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_all_of_them_at_once(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        before = open_files()
        parts = [(whole_part(store, MODEL, file), file) for file in FILES]
        durable = commit_all(parts)
        assert {leaf.cid for leaf in durable} == {leaf.cid for file in FILES for leaf in file.leaves}
        assert open_files() == before
        assert store.commit(MODEL.plan, MODEL.nodes, provenance=FROM_CID).complete
        assert list((tmp_path / "partial").iterdir()) == []
        assert store.verify().corrupt == ()
        assert commit_all(parts) == []
    with Store.open(tmp_path) as store:
        assert store.verify().files_checked == len(FILES)


def test_nothing_to_do(tmp_path: Path) -> None:
    assert commit_all([]) == []


def test_one_that_lacks_a_leaf_keeps_all_back(tmp_path: Path) -> None:
    large = small_model({"large": os.urandom(3 * CHUNK)})
    (file,) = large.plan.files
    with Store.open(tmp_path) as store:
        part = store.partial(file.cid, file.size)
        part.write(file.leaves[1], large.blocks[file.leaves[1].cid])
        whole = whole_part(store, MODEL, FILES[0])
        with pytest.raises(BadContent) as refused:
            commit_all([(whole, FILES[0]), (part, file)])
        assert refused.value.code == "incomplete"
        assert store.file(FILES[0].cid) is None
        assert commit_all([(whole, FILES[0])]) != []
        part.close()


@pytest.mark.parametrize("point", ["partial.before_fsync", "blob.before_rename", "blob.before_sync"])
def test_a_disk_that_refuses_one_of_them(tmp_path: Path, point: str) -> None:
    """A typed error, and the next try brings all."""
    with Store.open(tmp_path, failpoints=f"{point}=EIO@1") as store:
        parts = [(whole_part(store, MODEL, file), file) for file in FILES[:9]]
        with pytest.raises(StorageError):
            commit_all(parts)
        for part, _ in parts:
            part.close()
    with Store.open(tmp_path) as store:
        for file in FILES[:9]:
            commit_all([(whole_part(store, MODEL, file), file)])
        assert all(store.file(file.cid) is not None for file in FILES[:9])
        assert store.verify().corrupt == ()
        assert list((tmp_path / "partial").iterdir()) == []


def test_two_batches_that_share_files(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        ours = [(whole_part(store, MODEL, file), file) for file in FILES]
        theirs = [(whole_part(store, MODEL, file), file) for file in reversed(FILES)]
        threads = [threading.Thread(target=commit_all, args=(batch,)) for batch in (ours, theirs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert all(store.file(file.cid) is not None for file in FILES)
        assert store.verify().corrupt == ()
