"""Bad-input table D, 3, 4, 6 and 7: what a disk, a hand or another program did to the store."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import StorageError
from ipfs_accelerate_node.store import Store
from tests.support.small_model import CHUNK, bring, foreign_model, random_model, small_model

MODEL = random_model(21)
WEIGHTS = next(file for file in MODEL.plan.files if file.path == "weights.bin")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "cache")
    bring(store, MODEL, name="mini")
    return store


def reopened(store: Store) -> Store:
    store.close()
    return Store.open(store.root)


def blob(store: Store) -> Path:
    return store.root / "blobs" / str(WEIGHTS.cid)


def flip(path: Path, at: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes((byte ^ 1,)))
    path.chmod(0o400)


def truncate(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, WEIGHTS.size - 1)


def extend(path: Path) -> None:
    path.chmod(0o600)
    with path.open("ab") as file:
        file.write(b"\0")


def empty(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, 0)


def delete_everywhere(path: Path) -> None:
    path.unlink()
    shutil.rmtree(path.parent.parent / "models" / str(MODEL.root))


def exchange(path: Path) -> None:
    """The blob is another one, under the wrong name."""
    path.unlink()
    os.link(next(path.parent.iterdir()), path)


def symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "zero-length": empty,
    "truncated": truncate,
    "bit-flipped": lambda path: flip(path, 2 * CHUNK + 1),
    "extended": extend,
    "deleted everywhere": delete_everywhere,
    "wrong name": exchange,
    "symlink": symlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_quarantines_and_names(store: Store, damage: str) -> None:
    DAMAGE[damage](blob(store))
    (found,) = store.verify().corrupt
    assert found.cid == WEIGHTS.cid
    assert found.paths == (f"{MODEL.root}/weights.bin",)
    assert found.roots == (MODEL.root,)
    assert store.model(MODEL.root) is None
    assert not (store.root / "models" / str(MODEL.root)).exists()
    assert store.block(WEIGHTS.leaves[2].cid) is None
    assert [label.names for label in store.damaged()] == [("mini",)]
    assert store.verify().corrupt == ()
    again = bring(store, MODEL)
    assert (again.names, again.pinned) == (("mini",), True)
    assert store.damaged() == []
    assert store.verify().corrupt == ()


@pytest.mark.parametrize("damage", ["zero-length", "truncated", "extended"])
def test_wrong_sizes_are_seen_at_start(store: Store, damage: str) -> None:
    DAMAGE[damage](blob(store))
    again = reopened(store)
    assert again.model(MODEL.root) is None
    assert len(again.damaged()) == 1
    assert bring(again, MODEL).names == ("mini",)


@pytest.mark.parametrize("at", range(0, WEIGHTS.size, 509))
def test_a_flipped_byte_is_never_served(store: Store, at: int) -> None:
    flip(blob(store), at)
    leaf = WEIGHTS.leaves[at // CHUNK]
    assert store.block(leaf.cid) is None
    assert store.model(MODEL.root) is None
    assert any((store.root / "quarantine").glob(f"{WEIGHTS.cid}*"))


def test_leaf_is_read_from_another_file_when_one_is_corrupt(store: Store) -> None:
    other = small_model({"longer.bin": MODEL.files["weights.bin"] + b"more"})
    bring(store, other)
    flip(blob(store), 0)
    assert store.block(WEIGHTS.leaves[0].cid) == MODEL.blocks[WEIGHTS.leaves[0].cid]


def test_link_that_was_replaced_is_put_right(store: Store) -> None:
    path = store.root / "models" / str(MODEL.root) / "weights.bin"
    path.unlink()
    path.write_bytes(b"other")
    (found,) = store.verify().corrupt
    assert found.paths == (f"{MODEL.root}/weights.bin",)
    assert path.read_bytes() == MODEL.files["weights.bin"]
    assert store.verify().corrupt == ()


@pytest.mark.parametrize("build", [random_model, foreign_model])
@pytest.mark.parametrize("loss", ["missing", "garbage", "cut", "page"])
def test_lost_index_is_rebuilt(tmp_path: Path, build: Callable[[int], object], loss: str) -> None:
    model = build(7)
    with Store.open(tmp_path) as store:
        before = bring(store, model, name="a", public=False)  # type: ignore[arg-type]
        store.set_name(before.root, "b")
        store.unpin(before.root)
        before = store.models()[0]
        files = [store.file(file.cid) for file in model.plan.files]  # type: ignore[attr-defined]
    lose(tmp_path / "index.sqlite", loss)
    with Store.open(tmp_path) as store:
        assert store.models() == [before]
        assert [store.file(file.cid) for file in model.plan.files] == files  # type: ignore[attr-defined]
        for cid, block in model.blocks.items():  # type: ignore[attr-defined]
            assert store.block(cid) == block
        assert store.verify().corrupt == ()


def lose(index: Path, loss: str) -> None:
    if loss == "missing":
        index.unlink()
    elif loss == "garbage":
        index.write_bytes(b"not a database" * 1000)
    elif loss == "cut":
        os.truncate(index, index.stat().st_size // 2)
    else:
        data = bytearray(index.read_bytes())
        data[4096:12288] = bytes(8192)
        index.write_bytes(data)


def test_newer_index_is_refused_and_left_alone(store: Store) -> None:
    store.close()
    with sqlite3.connect(store.root / "index.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StorageError, match="newer"):
        Store.open(store.root)
    assert list((store.root / "quarantine").iterdir()) == []


def test_lost_blobs_come_back_from_the_model_directory(store: Store) -> None:
    store.close()
    for path in (store.root / "blobs").iterdir():
        path.unlink()
    (store.root / "index.sqlite").unlink()
    again = Store.open(store.root)
    assert again.verify().corrupt == ()
    assert blob(again).read_bytes() == MODEL.files["weights.bin"]


def test_lost_model_directory_is_linked_again(store: Store) -> None:
    store.close()
    shutil.rmtree(store.root / "models" / str(MODEL.root))
    again = Store.open(store.root)
    assert (store.root / "models" / str(MODEL.root) / "weights.bin").read_bytes() == MODEL.files["weights.bin"]
    assert again.verify().corrupt == ()


def test_bad_label_takes_only_its_model_down(store: Store) -> None:
    other = random_model(22)
    bring(store, other)
    store.close()
    (store.root / "models" / f"{MODEL.root}.json").write_text("{")
    again = Store.open(store.root)
    assert [model.root for model in again.models()] == [other.root]
    bring(again, MODEL)
    assert again.verify().corrupt == ()


def test_bad_plan_is_reported(store: Store) -> None:
    flip(store.root / "models" / f"{MODEL.root}.plan", 60)
    (found,) = store.verify().corrupt
    assert found.paths == (f"{MODEL.root}.plan",)
    assert bring(store, MODEL).names == ("mini",)


def test_label_is_readable(store: Store) -> None:
    label = json.loads((store.root / "models" / f"{MODEL.root}.json").read_text())
    assert label["names"] == ["mini"]
    assert label["provenance"]["kind"] == "cid"


def test_start_cleans_what_does_not_belong(store: Store) -> None:
    store.close()
    root = store.root
    (root / "partial" / "ingest-abc-0").write_bytes(b"x")
    (root / "partial" / f"{WEIGHTS.cid}.have").write_bytes(b"x")
    (root / "models" / ".new-x").mkdir()
    (root / "models" / "stray.plan").write_bytes(b"x")
    (root / "models" / "x.json.12345678.tmp").write_bytes(b"x")
    (root / "blobs" / "README").write_text("not a CID")
    (root / "blobs" / str(MODEL.root)).mkdir()
    again = Store.open(root)
    assert list((root / "partial").iterdir()) == []
    assert len(list((root / "models").iterdir())) == 3
    assert {path.name for path in (root / "blobs").iterdir()} == {str(file.cid) for file in MODEL.plan.files}
    assert {path.name for path in (root / "quarantine").iterdir()} == {"README", str(MODEL.root)}
    assert again.verify().corrupt == ()


def test_blob_without_a_row_is_checked_and_kept(tmp_path: Path) -> None:
    """Verified, renamed, and then the machine died before the row: it is hashed again, not fetched again."""
    store = Store.open(tmp_path)
    (tmp_path / "blobs" / str(WEIGHTS.cid)).write_bytes(MODEL.files["weights.bin"])
    store = reopened(store)
    assert store.file(WEIGHTS.cid) is None
    part = store.partial(WEIGHTS.cid, WEIGHTS.size)
    assert part.missing(WEIGHTS.leaves) == []
    assert part.commit(WEIGHTS).path.read_bytes() == MODEL.files["weights.bin"]


@pytest.mark.parametrize("name", ["blobs", "models", "partial", "quarantine", "index.sqlite", "store.lock"])
def test_symlinks_are_refused_at_start(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / name).symlink_to(outside / "file" if "." in name else outside)
    with pytest.raises(StorageError):
        Store.open(cache)
    assert list(outside.iterdir()) == []


def test_a_symlinked_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError, match="symlink"):
        Store.open(tmp_path / "cache")


@pytest.mark.parametrize("name", ["", "blobs", "models", "partial"])
def test_directory_swapped_for_a_symlink_while_running(store: Store, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = store.root / name if name else store.root
    target.rename(tmp_path / "moved")
    target.symlink_to(outside)
    with pytest.raises(StorageError, match="replaced"):
        bring(store, random_model(30))
    assert list(outside.iterdir()) == []
    if name != "blobs":
        assert store.block(WEIGHTS.leaves[0].cid) is not None  # what it holds, it still serves


def test_deleted_cache_is_a_typed_error(store: Store) -> None:
    shutil.rmtree(store.root)
    with pytest.raises(StorageError):
        bring(store, random_model(30))
