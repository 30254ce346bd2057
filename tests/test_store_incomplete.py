"""Models of which only some files are here: committed, extended, lost, found again, killed at every step."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NotFound, StorageError
from ipfs_accelerate_node.store import Store
from tests.support import crash
from tests.support.small_model import CHUNK, FROM_CID, SmallModel, bring, bring_files, random_model, small_model

MODEL = small_model(
    {"weights.bin": bytes(range(256)) * 20, "sub/config.json": b"{}", "sub/tokenizer.json": b"[1]"}, ("empty",)
)
CONFIG = "sub/config.json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "cache")


def reopened(store: Store, *, without_index: bool = False) -> Store:
    store.close()
    if without_index:
        for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
            (store.root / name).unlink(missing_ok=True)
    return Store.open(store.root)


def files_below(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def assert_has(store: Store, model: SmallModel, paths: set[str]) -> None:
    """The model is here with exactly these files, by everything that tells of it."""
    stored = store.model(model.root)
    assert stored is not None
    sizes = {file.path: file.size for file in model.plan.files}
    assert files_below(stored.path) == paths
    assert all((stored.path / path).read_bytes() == model.files[path] for path in paths)
    assert (stored.file_count, stored.size_bytes) == (len(paths), sum(sizes[path] for path in paths))
    assert stored.absent_files == len(sizes) - len(paths)
    assert stored.absent_bytes == sum(sizes.values()) - stored.size_bytes
    assert stored.complete == (paths == sizes.keys())
    assert {file.path for file in store.absent(model.root)} == sizes.keys() - paths
    assert store.plan(model.root) == model.plan
    assert dict(store.nodes(model.root)) == dict(model.nodes)
    for file in model.plan.files:
        whole = file.path in paths
        assert (store.file(file.cid) is not None) == whole
        assert all((store.block(leaf.cid) is not None) == whole for leaf in file.leaves)


def test_only_the_files_asked_for_are_kept(store: Store) -> None:
    bring(store, MODEL, name="some", paths={CONFIG})
    assert_has(store, MODEL, {CONFIG})
    assert store.named("some") == MODEL.root
    assert (store.root / "models" / str(MODEL.root) / "empty").is_dir()
    assert store.verify().corrupt == ()


@pytest.mark.parametrize("without_index", [False, True])
def test_files_of_later_commits_are_added(store: Store, without_index: bool) -> None:
    bring(store, MODEL, paths={CONFIG})
    store = reopened(store, without_index=without_index)
    assert_has(store, MODEL, {CONFIG})
    bring(store, MODEL, paths={"sub/tokenizer.json"})
    assert_has(store, MODEL, {CONFIG, "sub/tokenizer.json"})
    store = reopened(store, without_index=without_index)
    assert_has(store, MODEL, {CONFIG, "sub/tokenizer.json"})
    bring(store, MODEL, paths={CONFIG})
    assert_has(store, MODEL, {CONFIG, "sub/tokenizer.json"})
    assert bring(store, MODEL, name="all").names == ("all",)
    assert_has(store, MODEL, set(MODEL.files))
    store = reopened(store, without_index=without_index)
    assert_has(store, MODEL, set(MODEL.files))
    bring(store, MODEL, paths={CONFIG})
    assert_has(store, MODEL, set(MODEL.files))


def test_the_label_of_a_model_that_grows_only_widens(store: Store) -> None:
    bring(store, MODEL, name="a", pinned=False, public=False, paths={CONFIG})
    grown = bring(store, MODEL, name="b", pinned=True, public=True)
    assert (grown.names, grown.pinned, grown.public) == (("a", "b"), True, True)
    assert reopened(store, without_index=True).model(MODEL.root) == grown


def test_paths_that_the_plan_lacks_are_refused(store: Store) -> None:
    bring_files(store, MODEL)
    for paths in (set(), {"nothing"}, {CONFIG, "nothing"}):
        with pytest.raises(NotFound):
            store.commit(MODEL.plan, MODEL.nodes, provenance=FROM_CID, paths=paths)
    assert store.models() == []


def test_a_file_asked_for_must_be_a_blob(store: Store) -> None:
    bring_files(store, MODEL, paths={CONFIG})
    with pytest.raises(NotFound):
        store.commit(MODEL.plan, MODEL.nodes, provenance=FROM_CID, paths={CONFIG, "weights.bin"})
    store.commit(MODEL.plan, MODEL.nodes, provenance=FROM_CID, paths={CONFIG})
    with pytest.raises(NotFound):
        store.commit(MODEL.plan, MODEL.nodes, provenance=FROM_CID)
    assert_has(store, MODEL, {CONFIG})


def test_a_file_at_two_paths_is_here_at_both(store: Store) -> None:
    model = small_model({"a": b"same", "b/c": b"same", "other": b"other"})
    bring(store, model, paths={"a"})
    assert_has(store, model, {"a", "b/c"})


def test_blocks_of_an_incomplete_dag_end_in_an_error(store: Store) -> None:
    """What is here is served, and a whole DAG is never a short one."""
    bring(store, MODEL, paths={CONFIG})
    config = store.resolve(MODEL.root, CONFIG)
    weights = store.resolve(MODEL.root, "weights.bin")
    assert [block for _, block in store.blocks(config)] == [b"{}"]
    for root in (MODEL.root, weights):
        with pytest.raises(NotFound) as missing:
            list(store.blocks(root))
        assert missing.value.code == "missing_block"
    assert [cid for cid, _ in store.blocks(MODEL.root, scope="entity")] == [MODEL.root]


def test_visibility_is_that_of_the_files_it_has(store: Store) -> None:
    """A file that only a private model holds is not shown because a public one names it."""
    shared = {"weights.bin": b"w" * 3 * CHUNK}
    private, public = small_model(shared), small_model({**shared, "config.json": b"{}"})
    bring(store, private, public=False)
    bring(store, public, paths={"config.json"})
    weights = private.plan.files[0]
    assert store.file(weights.cid, public_only=True) is None
    assert store.block(weights.leaves[0].cid, public_only=True) is None
    bring(store, public)
    assert store.file(weights.cid, public_only=True) is not None


def test_quota_counts_what_is_here(tmp_path: Path) -> None:
    model = random_model(3, size=50 * CHUNK)
    with Store.open(tmp_path, quota_bytes=20 * CHUNK) as store:
        bring(store, model, paths={CONFIG}, pinned=False)
        assert store.used_bytes() < 4 * CHUNK
        with store.reserve(store.room_bytes() + 1):
            assert store.models() == []
        assert store.used_bytes() == 0


def test_remove_and_gc(store: Store) -> None:
    bring(store, MODEL, paths={CONFIG})
    store.unpin(MODEL.root)
    assert store.gc().models == (MODEL.root,)
    assert store.used_bytes() == 0
    assert not any(list((store.root / folder).iterdir()) for folder in ("blobs", "models", "partial"))
    with pytest.raises(NotFound):
        store.absent(MODEL.root)


def test_a_model_that_loses_a_file_returns_with_all_that_is_left(store: Store) -> None:
    """Quarantine takes an incomplete model down like any other; any part of it that is fetched brings it back."""
    bring(store, MODEL, name="some", paths={CONFIG, "weights.bin"})
    weights = store.resolve(MODEL.root, "weights.bin")
    blob = store.root / "blobs" / str(weights)
    blob.chmod(0o600)
    blob.write_bytes(b"\0" * blob.stat().st_size)
    (found,) = store.verify().corrupt
    assert (found.cid, found.roots) == (weights, (MODEL.root,))
    assert store.model(MODEL.root) is None
    assert [label.names for label in store.damaged()] == [("some",)]
    again = bring(store, MODEL, paths={"sub/tokenizer.json"})
    assert (again.names, again.pinned) == (("some",), True)
    assert_has(store, MODEL, {CONFIG, "sub/tokenizer.json"})
    assert store.damaged() == []


def test_a_lost_link_comes_back_at_start(store: Store) -> None:
    bring(store, MODEL, paths={CONFIG, "weights.bin"})
    shutil.rmtree(store.root / "models" / str(MODEL.root) / "sub")
    assert_has(reopened(store), MODEL, {CONFIG, "weights.bin"})


def test_what_lies_in_the_place_of_a_link_is_set_aside(store: Store) -> None:
    bring(store, MODEL, paths={CONFIG})
    place = store.root / "models" / str(MODEL.root) / CONFIG
    place.unlink()
    place.mkdir()
    store = reopened(store)
    assert_has(store, MODEL, {CONFIG})
    assert any(path.is_dir() for path in (store.root / "quarantine").iterdir())


def test_an_index_of_the_version_before_is_brought_forward(store: Store) -> None:
    bring(store, MODEL, name="old")
    store.close()
    with sqlite3.connect(store.root / "index.sqlite") as db:
        db.execute("ALTER TABLE models DROP COLUMN absent_files")
        db.execute("ALTER TABLE models DROP COLUMN absent_bytes")
        db.execute("ALTER TABLE files DROP COLUMN last_used")
        tables = db.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
        kept = {"models", "names", "files", "leaves", "members", "nodes", "model_nodes"}
        for (table,) in tables:
            if table not in kept:
                db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version=1")
    db.close()
    assert_has(Store.open(store.root), MODEL, set(MODEL.files))


def test_a_full_disk_while_files_are_added_changes_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path, failpoints="extend.before_links=ENOSPC@1") as store:
        bring(store, MODEL, paths={CONFIG})
        with pytest.raises(StorageError):
            bring(store, MODEL, paths={"sub/tokenizer.json"})
        stored = store.model(MODEL.root)
        assert stored is not None
        assert (stored.file_count, len(store.absent(MODEL.root))) == (1, 2)
        assert files_below(stored.path) == {CONFIG}
        bring(store, MODEL)
        assert_has(store, MODEL, set(MODEL.files))


@pytest.mark.parametrize("point", ["extend.before_plan", "extend.before_links", "extend.before_row"])
@pytest.mark.parametrize("without_index", [False, True])
def test_killed_while_files_are_added(tmp_path: Path, point: str, without_index: bool) -> None:
    status, out, err = crash.run("extend", tmp_path, f"{point}=kill")
    assert (status, out) == (-signal.SIGKILL, "open\nincomplete\n"), err
    if without_index:
        os.unlink(tmp_path / "index.sqlite")
    with Store.open(tmp_path) as store:
        added = point != "extend.before_plan"
        stored = store.model(crash.FETCHED.root)
        assert stored is not None
        assert stored.complete == added
        assert files_below(stored.path) == (set(crash.FETCHED.files) if added else {CONFIG})
        assert store.verify().corrupt == ()
        bring(store, crash.FETCHED, name="again")
        assert_has(store, crash.FETCHED, set(crash.FETCHED.files))


def test_root_of_one_file_has_nothing_to_leave_out(store: Store) -> None:
    cid = Cid.of(b"just a file")
    only = small_model({"f": b"just a file"}).plan.files[0]
    assert only.cid == cid
    with pytest.raises(NotFound):
        store.absent(cid)
