"""P4: killed anywhere, the next start finds the old state or the new one, whole, and needs no hand."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path

import pytest

from ipfs_accelerate_node.store import Store, hash_directory, ingest
from tests.support import crash
from tests.support.small_model import bring

ADD_POINTS = [
    "ingest.write",
    "ingest.write=kill@2",
    "ingest.sync",
    "blob.before_rename",
    "blob.after_rename",
    "blob.before_sync",
    "blob.before_row",
    "commit.before_links",
    "commit.before_plan",
    "commit.before_rename",
    "commit.before_label",
    "commit.before_row",
]
FETCH_POINTS = [
    "partial.write=kill@4",
    "partial.sync",
    "partial.before_record",
    "partial.before_fsync",
    "blob.after_rename",
    "blob.before_row",
    "commit.before_rename",
    "commit.before_label",
    "commit.before_row=kill@2",
]

BATCH_POINTS = [
    "partial.before_fsync=kill@4",
    "blob.before_rename=kill@4",
    "blob.after_rename=kill@4",
    "blob.before_sync",
    "blob.before_row",
    "commit.before_label",
]


def armed(point: str) -> str:
    return point if "=" in point else f"{point}=kill"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = random.Random(4)
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "weights.bin").write_bytes(rng.randbytes((1 << 20) + 17))
    (source / "sub" / "weights2.bin").write_bytes(rng.randbytes(5000))
    (source / "config.json").write_text("{}")
    return source


def assert_whole(store: Store) -> None:
    """Nothing torn, nothing left over, and every model complete."""
    report = store.verify()
    assert report.corrupt == ()
    names = {path.name for path in (store.root / "models").iterdir()}
    assert names == {f"{model.root}{suffix}" for model in store.models() for suffix in ("", ".plan", ".json")}
    assert not [path for path in (store.root / "partial").iterdir() if path.name.startswith("ingest-")]
    for model in store.models():
        assert sum(path.stat().st_size for path in model.path.rglob("*") if path.is_file()) == model.size_bytes
        assert len(list(store.blocks(model.root))) > 0


@pytest.mark.parametrize("point", ADD_POINTS)
def test_add_killed_at(tmp_path: Path, source: Path, point: str) -> None:
    status, out, err = crash.run("add", tmp_path / "cache", armed(point), source)
    assert (status, out) == (-signal.SIGKILL, "open\n"), err
    with Store.open(tmp_path / "cache") as store:
        assert_whole(store)
        root = hash_directory(source).plan.root
        assert {model.root for model in store.models()} <= {root}
        assert ingest(store, source, name="added", provenance=crash.LOCAL).model.root == root
        assert store.named("added") == root
        assert_whole(store)


@pytest.mark.parametrize("point", ["ingest.sync", "blob.after_rename", "blob.before_row", "commit.before_label"])
def test_move_killed_before_the_commit_keeps_the_source(tmp_path: Path, source: Path, point: str) -> None:
    before = {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert crash.run("move", tmp_path / "cache", armed(point), source)[0] == -signal.SIGKILL
    assert {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    with Store.open(tmp_path / "cache") as store:
        assert_whole(store)
        ingest(store, source, move=True, provenance=crash.LOCAL)
        assert_whole(store)
    assert not any(path.is_file() for path in source.rglob("*"))


@pytest.mark.parametrize("point", FETCH_POINTS)
def test_fetch_killed_at(tmp_path: Path, point: str) -> None:
    status, _, err = crash.run("fetch", tmp_path, armed(point))
    assert status == -signal.SIGKILL, err
    with Store.open(tmp_path) as store:
        assert_whole(store)
        assert bring(store, crash.FETCHED, name="fetched").names == ("fetched",)
        bring(store, crash.FOREIGN)
        assert_whole(store)
        assert list((tmp_path / "partial").iterdir()) == []


@pytest.mark.parametrize("point", BATCH_POINTS)
def test_small_files_killed_at(tmp_path: Path, point: str) -> None:
    """Files that become blobs together: what was written is here after a kill, hashed again, whatever it is by then."""
    status, _, err = crash.run("small", tmp_path, armed(point))
    assert status == -signal.SIGKILL, err
    with Store.open(tmp_path) as store:
        assert_whole(store)
        assert store.models() == []
        for file in crash.SMALL.plan.files:
            if store.file(file.cid) is None:
                with store.partial(file.cid, file.size) as part:
                    assert part.missing(file.leaves) == []
        assert bring(store, crash.SMALL, name="small").names == ("small",)
        assert_whole(store)
        assert list((tmp_path / "partial").iterdir()) == []


@pytest.mark.parametrize("point", ["remove.before_rows", "remove.before_links"])
def test_remove_killed_at(tmp_path: Path, point: str) -> None:
    with Store.open(tmp_path) as store:
        bring(store, crash.FETCHED)
    assert crash.run("remove", tmp_path, armed(point))[0] == -signal.SIGKILL
    with Store.open(tmp_path) as store:
        assert store.models() == []
        assert_whole(store)
        store.gc()
        assert store.used_bytes() == 0
        assert not any(list((tmp_path / folder).iterdir()) for folder in ("blobs", "models", "partial"))


def test_label_outlives_its_row(tmp_path: Path) -> None:
    """A pin or a name that was written counts, though the index had not heard of it."""
    with Store.open(tmp_path) as store:
        bring(store, crash.FETCHED, name="old")
    assert crash.run("label", tmp_path, "label.before_row=kill@2")[0] == -signal.SIGKILL
    with Store.open(tmp_path) as store:
        (model,) = store.models()
        assert (model.pinned, model.names) == (False, (f"new-{model.root}", "old"))


def kill_rounds(cache: Path, source: Path, rounds: int) -> None:
    rng = random.Random(rounds)
    for _ in range(rounds):
        process = crash.start("churn", cache, "", source)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        try:
            process.wait(timeout=rng.uniform(0.0, 0.25))
            raise AssertionError(process.communicate()[1])
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        with Store.open(cache) as store:
            assert_whole(store)


def test_killed_at_random_moments(tmp_path: Path, source: Path) -> None:
    kill_rounds(tmp_path / "cache", source, 6)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_killed_at_many_random_moments(tmp_path: Path, source: Path) -> None:
    kill_rounds(tmp_path / "cache", source, 200)
