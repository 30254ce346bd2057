"""Bad-input table D, 1, 2 and 5: the disk refuses. Injected by name at every place, and for real where that needs
mounts and strace (full)."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import NodeError, QuotaExceeded, StorageError, Unavailable
from ipfs_accelerate_node.store import Store, disk, ingest
from tests.support.crash import CHECKOUT, FETCHED, LOCAL
from tests.support.small_model import CHUNK, bring, random_model, small_model
from tests.test_store_crash import ADD_POINTS, FETCH_POINTS, assert_whole

FULL_OR_BROKEN = ["ENOSPC", "EIO", "EDQUOT", "EROFS"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights.bin").write_bytes(FETCHED.files["weights.bin"])
    (source / "config.json").write_text("{}")
    return source


@pytest.mark.parametrize("fault", FULL_OR_BROKEN)
@pytest.mark.parametrize("point", sorted({point.partition("=")[0] for point in ADD_POINTS}))
def test_add_that_the_disk_refuses(tmp_path: Path, source: Path, point: str, fault: str) -> None:
    store = Store.open(tmp_path / "cache", failpoints=f"{point}={fault}@1")
    with pytest.raises(StorageError) as failed:
        ingest(store, source, provenance=LOCAL)
    assert failed.value.detail["errno"] == fault
    assert store.models() == []
    assert not list((store.root / "partial").glob("ingest-*"))
    added = ingest(store, source, provenance=LOCAL)
    assert_whole(store)
    store.close()
    with Store.open(tmp_path / "cache") as again:
        assert again.model(added.model.root) is not None
        assert_whole(again)


@pytest.mark.parametrize("fault", ["EIO", "EROFS"])
@pytest.mark.parametrize("point", sorted({point.partition("=")[0] for point in FETCH_POINTS}))
def test_fetch_that_the_disk_refuses(tmp_path: Path, point: str, fault: str) -> None:
    store = Store.open(tmp_path, failpoints=f"{point}={fault}@1")
    with pytest.raises(StorageError):
        bring(store, FETCHED)
    assert store.models() == []
    bring(store, FETCHED)
    assert_whole(store)
    assert not any((tmp_path / "partial").iterdir())


def test_full_disk_evicts_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path, failpoints="partial.write=ENOSPC@9")
    old = random_model(1)
    bring(store, old, pinned=False)
    bring(store, random_model(2))
    assert [model.root for model in store.models()] == [random_model(2).root]


def test_full_disk_evicts_once_for_an_add(tmp_path: Path, source: Path) -> None:
    store = Store.open(tmp_path / "cache", failpoints="ingest.leaf=ENOSPC@1")
    bring(store, random_model(1), pinned=False)
    added = ingest(store, source, provenance=LOCAL)
    copied = store.failpoints.passed.get("ingest.leaf")  # never passed where the file system shares the blocks instead
    expected = {added.model.root} if copied else {added.model.root, random_model(1).root}
    assert {model.root for model in store.models()} == expected


def test_full_disk_with_nothing_to_evict(tmp_path: Path) -> None:
    store = Store.open(tmp_path, failpoints="partial.write=ENOSPC@3")
    with pytest.raises(StorageError, match="free some space"):
        bring(store, FETCHED)
    bring(store, FETCHED)
    assert_whole(store)


def test_unreadable_file_is_quarantined(tmp_path: Path) -> None:
    store = Store.open(tmp_path, failpoints="blob.read=EIO@1")
    bring(store, FETCHED, name="mini")
    leaf = FETCHED.plan.files[1].leaves[0]
    assert store.block(leaf.cid) is None
    assert [label.names for label in store.damaged()] == [("mini",)]
    assert bring(store, FETCHED).names == ("mini",)
    assert store.block(leaf.cid) is not None


def test_out_of_descriptors_is_unavailable_and_passes(tmp_path: Path) -> None:
    store = Store.open(tmp_path, failpoints="blob.read=EMFILE@1,partial.write=ENFILE@1")
    with pytest.raises(Unavailable) as failed:
        bring(store, FETCHED)
    assert failed.value.retry_after_s == 1.0
    bring(store, FETCHED)
    leaf = FETCHED.plan.files[1].leaves[0]
    with pytest.raises(Unavailable):
        store.block(leaf.cid)
    assert store.block(leaf.cid) is not None
    assert store.models()[0].root == FETCHED.root


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """As good as none left: only what is open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, hard))
    with pytest.raises(OSError, match="Too many open files"):
        held.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(soft))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for fd in held:
        os.close(fd)


def test_really_out_of_descriptors(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = Store.open(tmp_path)
    bring(store, FETCHED)
    leaf = FETCHED.plan.files[1].leaves[0]
    request.getfixturevalue("few_descriptors")
    with pytest.raises(Unavailable):
        store.block(leaf.cid)
    with pytest.raises(Unavailable):
        bring(store, random_model(5))
    assert store.models()[0].root == FETCHED.root


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageError),
        (errno.EDQUOT, StorageError),
        (errno.EIO, StorageError),
        (errno.EROFS, StorageError),
        (errno.EACCES, StorageError),
        (errno.EMFILE, Unavailable),
        (errno.ENFILE, Unavailable),
    ],
)
def test_every_system_error_has_a_type(number: int, kind: type[NodeError]) -> None:
    failure = disk.storage_failure(OSError(number, os.strerror(number)), "cannot write x")
    assert type(failure) is kind
    assert failure.detail["errno"] == errno.errorcode[number]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.full
def test_really_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """Foreign data fills the disk after the reservation: the writer is told, the store stays whole."""
    store = Store.open(small_disk / "cache")
    keep = random_model(1, size=100 * CHUNK)
    bring(store, keep)
    with pytest.raises(QuotaExceeded):
        store.reserve(8 << 20)
    big = small_model({"big.bin": os.urandom(2000 * CHUNK)})
    with store.reserve(2000 * CHUNK), (small_disk / "foreign").open("wb") as foreign:
        foreign.write(bytes(2000 * CHUNK))
        foreign.flush()
        with pytest.raises(StorageError):
            bring(store, big)
    (small_disk / "foreign").unlink()
    bring(store, big)
    assert_whole(store)
    store.close()
    Store.open(small_disk / "cache").close()


@pytest.mark.full
def test_read_only_disk_is_refused_at_start(small_disk: Path) -> None:
    with Store.open(small_disk / "cache") as store:
        bring(store, FETCHED)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError):
        Store.open(small_disk / "cache")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with Store.open(small_disk / "cache") as store:
        assert_whole(store)


CALLS = ["rename,renameat,renameat2", "link,linkat", "fsync,fdatasync", "mkdir,mkdirat", "pwrite64"]


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("effect", ["signal=KILL", "error=EIO", "error=ENOSPC"])
def test_fault_at_the_nth_system_call(tmp_path: Path, source: Path, calls: str, effect: str) -> None:
    """F3 and F4: until a run gets through without the fault, every earlier one leaves a whole store."""
    for nth in range(1, 400):
        cache = tmp_path / f"cache-{nth}"
        inject = f"inject={calls}:{effect}:when={nth}"
        command = ["strace", "-f", "-qq", "-o", str(tmp_path / "log"), "-e", f"trace={calls}", "-e", inject]
        program = [sys.executable, "-m", "tests.support.crash", "add", str(cache), "", str(source)]
        ran = subprocess.run([*command, *program], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
        with Store.open(cache) as store:
            assert_whole(store)
            ingest(store, source, provenance=LOCAL)
            assert_whole(store)
        if ran.returncode == 0 and "INJECTED" not in (tmp_path / "log").read_text():
            assert nth > 1
            return
    raise AssertionError(f"{calls}: more than 400 calls")
