"""`add`: a directory on disk becomes a model of the store, in one pass over its bytes.

Every file is copied (or reflinked, or with move linked) into ``partial/`` while it is hashed; only when all of them are
there, synced and unchanged do they become blobs and the model is committed. A file that is moved keeps its old name
until then, so a crash loses nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ipfs_accelerate_node.content.build import BuiltFile, BuiltTree, file_dag, tree_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, ModelPlan
from ipfs_accelerate_node.errors import BadRequest
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.blobs import Incoming
from ipfs_accelerate_node.store.hashing import HashedFile, Hasher, changed
from ipfs_accelerate_node.store.partials import INGEST_PREFIX
from ipfs_accelerate_node.store.quota import Reservation
from ipfs_accelerate_node.store.source_tree import SourceFile, SourceTree, scan
from ipfs_accelerate_node.store.store import Store
from ipfs_accelerate_node.store.types import Provenance, StoredModel

log = logging.getLogger(__name__)
Progress = Callable[[int], None]
_SYNC_BYTES = 64 << 20  # written back in steps, so that the last sync is short …
_SYNCS_AHEAD = 8  # … and not more than so many of them are dirty


@dataclass(frozen=True, slots=True)
class Ingested:
    """nodes: every node block of the tree, children first. bytes_copied: written or reflinked; what was there or was
    moved does not count."""

    model: StoredModel
    plan: ModelPlan
    nodes: tuple[tuple[Cid, bytes], ...]
    bytes_copied: int


def hash_directory(directory: Path, progress: Progress | None = None) -> BuiltTree:
    """The root that `ingest` would give, without a store. Raises as `ingest` does, but for what a store raises."""
    with scan(directory) as tree, Hasher() as hasher, disk.storing(f"cannot read {directory}"):
        counter = _Counter(progress)
        built = {}
        for file in tree.files:
            with tree.open(file.path) as (fd, _, _):
                built[file.path] = file_dag(_hash_unchanged(hasher, fd, counter).leaves)
        return _tree(tree, built)


def ingest(
    store: Store,
    directory: Path,
    *,
    name: str | None = None,
    pinned: bool = True,
    public: bool = False,
    announce: bool = False,
    move: bool = False,
    provenance: Provenance,
    progress: Progress | None = None,
) -> Ingested:
    """Stores what `ipfs add -r` would take of a directory (or one file); its root is the same.

    move: the files are taken over, where they lie on the store's device, and are gone from the directory afterwards.
    progress: bytes hashed so far. Blocks for as long as the bytes take.
    Raises UnsafeContent (symlinks, devices, unsafe names), NotFound, BadRequest (code source_changed: then nothing was
    stored; too_many_entries), QuotaExceeded, StorageError, Conflict if the name means another root.
    """
    with scan(directory) as tree:
        if tree.size_bytes > store.room_bytes() and (known := _known(store, directory)) is not None:
            model = store.commit(
                known.plan,
                known.nodes,
                name=name,
                pinned=pinned,
                public=public,
                announce=announce,
                provenance=provenance,
            )
            return Ingested(model, known.plan, known.nodes, 0)
        with store.reserve(tree.size_bytes) as reservation, _Intake(store, tree, move, progress) as intake:
            built = intake.take_all()
            intake.admit(built, reservation)
            model = store.commit(
                built.plan,
                built.nodes,
                name=name,
                pinned=pinned,
                public=public,
                announce=announce,
                provenance=provenance,
            )
            intake.let_go()
    log.info("store.ingest root=%s bytes=%d files=%d", model.root, model.size_bytes, model.file_count)
    return Ingested(model, built.plan, built.nodes, intake.bytes_copied)


def _known(store: Store, directory: Path) -> BuiltTree | None:
    """The tree if it needs no room, because every file is stored already."""
    built = hash_directory(directory)
    return built if all(store.file(file.cid) is not None for file in built.plan.files) else None


@dataclass(frozen=True, slots=True)
class _Taken:
    """A file in ``partial/``. source: what it was when it was read."""

    path: str
    name: str
    hashed: HashedFile
    built: BuiltFile
    source: os.stat_result


class _Intake:
    """Files on their way in; whatever is still in ``partial/`` at the end of the context is removed."""

    def __init__(self, store: Store, tree: SourceTree, move: bool, progress: Progress | None) -> None:
        self.bytes_copied = 0
        self._store = store
        self._tree = tree
        self._move = move
        self._counter = _Counter(progress)
        self._hasher = Hasher()
        self._sync = ThreadPoolExecutor(2, thread_name_prefix="sync")
        self._prefix = f"{INGEST_PREFIX}{secrets.token_hex(6)}-"
        self._names: list[str] = []
        self._taken: list[_Taken] = []
        self._syncs: list[Future[None]] = []
        self._modes: dict[str, int] = {}

    def __enter__(self) -> _Intake:
        self._hasher.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hasher.__exit__(None, None, None)
        self._sync.shutdown()
        with disk.storing("cannot remove temporary files"):
            for name in self._names:
                disk.unlink_if_there(name, dir_fd=self._store.layout.partial)
        for path, mode in self._modes.items():
            self._restore(path, mode)

    def take_all(self) -> BuiltTree:
        """Every file hashed, in ``partial/``, synced. Raises as `ingest`."""
        with disk.storing("cannot add"):
            for file in self._tree.files:
                self._taken.append(self._take(file))
            for sync in self._syncs:
                sync.result()
        return _tree(self._tree, {taken.path: taken.built for taken in self._taken})

    def admit(self, built: BuiltTree, reservation: Reservation) -> None:
        """All of them become blobs at once."""
        plans = {file.path: file for file in built.plan.files}
        incoming = []
        seen: set[Cid] = set()
        for taken in self._taken:
            file = plans[taken.path]
            if file.cid not in seen:  # a second file of the same bytes is removed with what is left over
                seen.add(file.cid)
                incoming.append(Incoming(file, taken.hashed.hashes, taken.name, self._store.layout.partial))
        self._store.blobs.admit(incoming, landed=lambda: reservation.spend(built.plan.size_bytes))

    def let_go(self) -> None:
        """The model is committed: moved files lose their old names, and directories that are empty now go."""
        self._modes.clear()
        with disk.storing("cannot remove what was moved"):
            if self._move:
                for taken in self._taken:
                    self._remove_source(taken)
                self._remove_empty_directories()

    # private

    def _take(self, file: SourceFile) -> _Taken:
        name = f"{self._prefix}{len(self._taken)}"
        with self._tree.open(file.path) as (fd, folder, source_name):
            moved = self._move and self._link(fd, folder, source_name, name, file.path)
            source, target = os.fstat(fd), -1
            try:
                if moved:
                    hashed = _hash_unchanged(self._hasher, fd, self._counter)
                    self._synced(os.dup(fd))
                else:
                    self._names.append(name)
                    target = disk.create(name, dir_fd=self._store.layout.partial)
                    hashed = self._copy(fd, target)
                    os.fchmod(target, 0o400)
                    self._synced(os.dup(target))
                    self.bytes_copied += hashed.size
            finally:
                if target >= 0:
                    os.close(target)
        return _Taken(file.path, name, hashed, file_dag(hashed.leaves), source)

    def _copy(self, source: int, target: int) -> HashedFile:
        before = os.fstat(source)
        self._store.failpoints.hit("ingest.write")
        if disk.clone(target, source):
            hashed = self._hasher.hash(target, before.st_size, progress=self._counter.file())
        else:
            write_back: list[Future[None]] = []

            def sink(part: memoryview, offset: int) -> None:
                self._write(target, part, offset)
                if (offset + len(part)) % _SYNC_BYTES == 0:
                    write_back.append(self._sync.submit(os.fdatasync, target))
                    if len(write_back) > _SYNCS_AHEAD:
                        write_back.pop(0).result()

            try:
                hashed = self._hasher.hash(source, before.st_size, sink, self._counter.file())
            finally:
                for earlier in write_back:
                    earlier.result()
        _check_unchanged(before, os.fstat(source))
        self._counter.add(before.st_size)
        return hashed

    def _write(self, target: int, part: memoryview, offset: int) -> None:
        try:
            self._store.failpoints.hit("ingest.leaf")
            disk.write_all(target, part, offset)
        except OSError as exc:
            if not disk.is_full(exc) or not self._store.relieve(len(part)):
                raise
            disk.write_all(target, part, offset)

    def _link(self, fd: int, folder: int, source_name: str, name: str, path: str) -> bool:
        """Gives a source file a name in ``partial/``, read-only from here on. False where it has to be copied: another
        device, another owner, or other names that would share its bytes."""
        found = os.fstat(fd)
        if found.st_nlink != 1 or found.st_uid != os.geteuid():
            return False
        try:
            fds = {"src_dir_fd": folder, "dst_dir_fd": self._store.layout.partial}
            os.link(source_name, name, follow_symlinks=False, **fds)
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES):
                return False
            raise
        self._names.append(name)
        there = os.stat(name, dir_fd=self._store.layout.partial, follow_symlinks=False)
        if not os.path.samestat(there, found):
            raise changed()
        self._modes[path] = found.st_mode & 0o7777
        os.fchmod(fd, 0o400)
        return True

    def _synced(self, fd: int) -> None:
        """Syncs in the background and closes; bounded, as each holds a descriptor."""

        def sync() -> None:
            try:
                self._store.failpoints.hit("ingest.sync")
                os.fsync(fd)
            finally:
                os.close(fd)

        if len(self._syncs) >= 64:
            self._syncs.pop(0).result()
        self._syncs.append(self._sync.submit(sync))

    def _restore(self, path: str, mode: int) -> None:
        """A move that failed leaves its source as it was."""
        try:
            with self._tree.open(path) as (fd, _, _):
                os.fchmod(fd, mode)
        except (OSError, BadRequest) as exc:  # the failure that led here is the one to report
            log.warning("store.move_not_undone path=%s reason=%s", path, exc)

    def _remove_source(self, taken: _Taken) -> None:
        """Only the file that was read: one that came in its place meanwhile stays."""
        with self._tree.open(taken.path) as (fd, folder, name):
            found = os.fstat(fd)
            if os.path.samestat(found, taken.source) and not _differs(found, taken.source):
                os.unlink(name, dir_fd=folder)

    def _remove_empty_directories(self) -> None:
        for path in sorted(self._tree.directories, key=lambda path: path.count("/"), reverse=True):
            try:
                os.rmdir(path, dir_fd=self._tree.fd)
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise


class _Counter:
    """Adds up the bytes of all files for whoever watches."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._before = 0

    def file(self) -> Progress | None:
        progress, before = self._progress, self._before
        return None if progress is None else lambda count: progress(before + count)

    def add(self, size: int) -> None:
        self._before += size


def _hash_unchanged(hasher: Hasher, fd: int, counter: _Counter) -> HashedFile:
    before = os.fstat(fd)
    hashed = hasher.hash(fd, before.st_size, progress=counter.file())
    _check_unchanged(before, os.fstat(fd))
    counter.add(hashed.size)
    return hashed


def _check_unchanged(before: os.stat_result, after: os.stat_result) -> None:
    if _differs(before, after):
        raise changed()


def _differs(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)


def _tree(tree: SourceTree, built: dict[str, BuiltFile]) -> BuiltTree:
    if not tree.single:
        return tree_dag(built, tree.directories)
    file = built[""]
    return BuiltTree(ModelPlan(file.cid, (FilePlan("", file.cid, file.size, file.leaves),)), file.nodes)
