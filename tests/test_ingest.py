from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.build import CHUNK_BYTES
from ipfs_accelerate_node.errors import BadRequest, Conflict, NotFound, QuotaExceeded, StorageError, UnsafeContent
from ipfs_accelerate_node.store import Provenance, Store, hash_directory, ingest
from ipfs_accelerate_node.store.hashing import BUFFERS, Hasher
from tests.support.crash import CHECKOUT, LOCAL
from tests.support.small_model import bring, small_model

# empty; a byte; around one leaf; around what may be read ahead; several leaves with a rest
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, BUFFERS * CHUNK_BYTES, (BUFFERS + 3) * CHUNK_BYTES + 5]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "cache")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tree(
        tmp_path / "source",
        {
            "weights.bin": random.Random(1).randbytes(2 * CHUNK_BYTES + 100),
            "copy.bin": b"same",
            "sub/copy.bin": b"same",
            "sub/deep/empty": b"",
            ".hidden": b"not taken",
            ".git/config": b"not taken",
        },
    )


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_directory_becomes_a_model(store: Store, source: Path) -> None:
    seen: list[int] = []
    added = ingest(store, source, name="mini", provenance=LOCAL, progress=seen.append)
    total = 2 * CHUNK_BYTES + 108
    assert added.model.size_bytes == added.bytes_copied == total == seen[-1]
    assert seen == sorted(seen)
    assert [file.path for file in added.plan.files] == ["copy.bin", "sub/copy.bin", "sub/deep/empty", "weights.bin"]
    for file in added.plan.files:
        assert (added.model.path / file.path).read_bytes() == (source / file.path).read_bytes()
    assert (added.model.pinned, added.model.public, added.model.names) == (True, False, ("mini",))
    assert store.plan(added.model.root) == added.plan
    assert store.verify().corrupt == ()
    assert (source / "weights.bin").stat().st_nlink == 1
    assert list((store.root / "partial").iterdir()) == []


def test_root_without_a_store_is_the_same(store: Store, source: Path) -> None:
    built = hash_directory(source)
    added = ingest(store, source, provenance=LOCAL)
    assert (built.plan, built.nodes) == (added.plan, added.nodes)


@pytest.mark.parametrize("size", SIZES)
def test_one_pass_gives_all_three_hashes(store: Store, tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    source = tree(tmp_path / "source", {"file": data})
    file = ingest(store, source, provenance=LOCAL).plan.files[0]
    stored = store.file(file.cid)
    assert stored is not None
    assert stored.sha256 == hashlib.sha256(data).digest()
    assert stored.git_sha1 == hashlib.sha1(f"blob {size}\0".encode() + data).digest()
    assert [leaf.length for leaf in file.leaves] == [
        len(data[at : at + CHUNK_BYTES]) for at in range(0, max(size, 1), CHUNK_BYTES)
    ]
    assert stored.path.read_bytes() == data


def test_single_file(store: Store, source: Path) -> None:
    added = ingest(store, source / "weights.bin", provenance=LOCAL)
    path = added.model.path / str(added.model.root)
    assert path.read_bytes() == (source / "weights.bin").read_bytes()
    assert hash_directory(source / "weights.bin").plan == added.plan


def test_adding_twice_is_one_model(store: Store, source: Path) -> None:
    one = ingest(store, source, name="a", provenance=LOCAL)
    used = store.used_bytes()
    two = ingest(store, source, name="b", public=True, provenance=Provenance("local", "again", LOCAL.at))
    assert two.model.names == ("a", "b")
    assert two.model.provenance == one.model.provenance
    assert store.used_bytes() == used


def test_adding_what_is_here_needs_no_room(tmp_path: Path, source: Path) -> None:
    store = Store.open(tmp_path / "cache", quota_bytes=3 * CHUNK_BYTES)
    first = ingest(store, source, provenance=LOCAL)
    again = ingest(store, source, provenance=LOCAL)
    assert again.model.root == first.model.root
    assert again.bytes_copied == 0


def test_what_does_not_fit_is_refused_before_it_is_written(tmp_path: Path, source: Path) -> None:
    store = Store.open(tmp_path / "cache", quota_bytes=CHUNK_BYTES)
    with pytest.raises(QuotaExceeded):
        ingest(store, source, provenance=LOCAL)
    assert store.used_bytes() == 0
    assert list((store.root / "partial").iterdir()) == []


def test_hidden_files_and_empty_directories(store: Store, source: Path) -> None:
    (source / "empty" / "nested").mkdir(parents=True)
    added = ingest(store, source, provenance=LOCAL)
    assert added.plan.directories == ("empty", "empty/nested", "sub", "sub/deep")
    assert (added.model.path / "empty" / "nested").is_dir()
    assert not (added.model.path / ".hidden").exists()


def test_symlinks_and_devices_are_refused(store: Store, source: Path) -> None:
    kinds: dict[str, Callable[[Path], None]] = {
        "link": lambda path: path.symlink_to("weights.bin"),
        "dirlink": lambda path: path.symlink_to("sub"),
        "fifo": os.mkfifo,
    }
    for name, make in kinds.items():
        make(source / name)
        with pytest.raises(UnsafeContent) as refused:
            ingest(store, source, provenance=LOCAL)
        assert refused.value.code == "unsafe_file"
        with pytest.raises(UnsafeContent):
            hash_directory(source)
        (source / name).unlink()
    (source.parent / "alias").symlink_to(source)
    with pytest.raises(UnsafeContent):
        ingest(store, source.parent / "alias", provenance=LOCAL)
    assert store.models() == []
    (source / ".hidden-link").symlink_to("/etc/passwd")
    ingest(store, source, provenance=LOCAL)


@pytest.mark.parametrize("name", ["CON", "a\\b", "C:x", "a\nb", os.fsdecode(b"\xff\xfe")])
def test_unsafe_names_are_refused(store: Store, source: Path, name: str) -> None:
    (source / name).write_bytes(b"")
    with pytest.raises(UnsafeContent) as refused:
        ingest(store, source, provenance=LOCAL)
    assert refused.value.code == "invalid_path"


@pytest.mark.parametrize(
    "twins", [("Model.bin", "model.bin"), tuple(unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))]
)
def test_names_that_some_file_system_confuses_are_refused(store: Store, source: Path, twins: tuple[str, str]) -> None:
    for name in twins:
        (source / name).write_bytes(b"")
    with pytest.raises(UnsafeContent):
        ingest(store, source, provenance=LOCAL)


def test_too_many_entries(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(10_001):
        os.mkdir(source / str(number))
    with pytest.raises(BadRequest) as refused:
        ingest(store, source, provenance=LOCAL)
    assert refused.value.code == "too_many_entries"


def test_source_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        ingest(store, tmp_path / "nothing", provenance=LOCAL)


@pytest.mark.parametrize("change", ["append", "truncate", "rewrite", "delete", "swap for a link"])
def test_a_file_that_changes_while_it_is_read_stores_nothing(store: Store, source: Path, change: str) -> None:
    victim = source / "weights.bin"

    def meddle(count: int) -> None:
        if count < CHUNK_BYTES:  # while the first small files are read
            if change in ("delete", "swap for a link"):
                victim.unlink(missing_ok=True)
            if change == "swap for a link":
                victim.symlink_to("/etc/passwd")
        elif change == "append":
            with victim.open("ab") as file:
                file.write(b"more")
        elif change == "truncate":
            os.truncate(victim, CHUNK_BYTES + 1)
        elif change == "rewrite":
            victim.write_bytes(random.Random(2).randbytes(2 * CHUNK_BYTES + 100))

    with pytest.raises(BadRequest) as refused:
        ingest(store, source, provenance=LOCAL, progress=meddle)
    assert refused.value.code == "source_changed"
    assert store.models() == []
    assert store.used_bytes() == 0
    assert not any((store.root / "blobs").iterdir())
    assert not any((store.root / "partial").iterdir())


def test_hashing_threads_end_also_after_a_failure(source: Path) -> None:
    before = threading.active_count()
    with pytest.raises(BadRequest), Hasher() as hasher, (source / "weights.bin").open("rb") as file:
        hasher.hash(file.fileno(), 1)
    assert threading.active_count() == before


def test_name_of_another_root(store: Store, source: Path) -> None:
    bring(store, small_model({"a": b"a"}), name="taken")
    with pytest.raises(Conflict):
        ingest(store, source, name="taken", provenance=LOCAL)
    assert len(store.models()) == 1


def test_moved_files_are_taken_over(store: Store, source: Path) -> None:
    expected = hash_directory(source)
    inode = (source / "weights.bin").stat().st_ino
    added = ingest(store, source, move=True, provenance=LOCAL)
    assert added.plan == expected.plan
    assert added.bytes_copied == 0
    moved = added.model.path / "weights.bin"
    assert moved.stat().st_ino == inode
    assert stat.S_IMODE(moved.stat().st_mode) == 0o400
    assert {path.name for path in source.iterdir()} == {".hidden", ".git"}
    assert store.verify().corrupt == ()


def test_moved_file_with_another_name_is_copied(store: Store, source: Path) -> None:
    """Its other name would let someone write into the store."""
    outside = source.parent / "other-name"
    os.link(source / "weights.bin", outside)
    added = ingest(store, source, move=True, provenance=LOCAL)
    assert added.bytes_copied == outside.stat().st_size
    assert (added.model.path / "weights.bin").stat().st_ino != outside.stat().st_ino
    assert not (source / "weights.bin").exists()
    assert os.access(outside, os.W_OK)


def test_failed_move_leaves_the_source_as_it_was(tmp_path: Path, source: Path) -> None:
    store = Store.open(tmp_path / "cache", failpoints="ingest.sync=EIO")
    (source / "weights.bin").chmod(0o644)
    with pytest.raises(StorageError):
        ingest(store, source, move=True, provenance=LOCAL)
    assert stat.S_IMODE((source / "weights.bin").stat().st_mode) == 0o644
    assert (source / "weights.bin").stat().st_nlink == 1
    assert not any((store.root / "partial").iterdir())
    assert store.used_bytes() == 0


PEAK = """
import resource, sys
from pathlib import Path
from ipfs_accelerate_node.store import Store, ingest
from tests.support.crash import LOCAL
store = Store.open(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ingest(store, Path(sys.argv[2]), provenance=LOCAL)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A 300 MiB file, mostly a hole: 12 buffers of a leaf each are all that it may take, and some allocator slack."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "weights.bin").open("wb") as file:
        file.truncate(300 << 20)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "cache"), str(source)]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=18)
    before, after = (int(word) for word in ran.stdout.split())
    assert after - before <= 32 << 10
