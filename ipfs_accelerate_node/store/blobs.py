"""Verified files: how they get into ``blobs/``, and how blocks are read back out of them."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.errors import StorageError
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.failpoints import Failpoints
from ipfs_accelerate_node.store.index import FileRow, Index, LeafRow
from ipfs_accelerate_node.store.layout import Layout
from ipfs_accelerate_node.store.sidecar import Hashes, is_known
from ipfs_accelerate_node.store.types import LeafPlace, StoredFile

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file that lies elsewhere in the store: every leaf verified, synced, 0400. keep: leave its old name too."""

    file: FilePlan
    hashes: Hashes
    name: str
    dir_fd: int
    keep: bool = False


class Blobs:
    """on_corrupt: told, with a reason, of a file whose bytes are not what its CID says; takes it out of the store.

    may_equal: whether a file without a sha256 may have the bytes of a stored one. hash_alike: sees to it that those
    which may have a file's bytes have a sha256. on_unhashed: told of a file that has none yet."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        lock: threading.RLock,
        failpoints: Failpoints,
        on_corrupt: Callable[[Cid, str], object],
    ) -> None:
        self._layout = layout
        self._index = index
        self._lock = lock
        self._failpoints = failpoints
        self._on_corrupt = on_corrupt
        self.guarded: Callable[[float], bool] = lambda _: False
        self.may_equal: Callable[[FilePlan], bool] = lambda _: True
        self.hash_alike: Callable[[FilePlan], None] = lambda _: None
        self.on_unhashed: Callable[[], None] = lambda: None
        self._touched_s: dict[Cid, float] = {}
        self._used_last: Cid | None = None  # of those that were asked for and are not public

    def admit(self, incoming: Sequence[Incoming], landed: Callable[[], None] = lambda: None) -> None:
        """All of them become blobs, durably, then get their rows; landed runs with the rows, under the store's lock.

        Equal bytes become one inode. A crash in between leaves blobs without rows, which the next start keeps as parts.
        """
        for item in incoming:
            if item.hashes.known:
                self.hash_alike(item.file)
        with self._lock, disk.storing("cannot store a file"):
            self._layout.check()
            twins: dict[bytes, Cid] = {}
            new = [item for item in incoming if self._index.file(item.file.cid) is None]
            for item in new:
                self._place(item, twins.get(item.hashes.sha256) or self._twin(item))
                twins.setdefault(item.hashes.sha256, item.file.cid)
            for item in incoming:
                self._touched_s[item.file.cid.canonical] = time.monotonic()
                if not item.keep:
                    disk.unlink_if_there(item.name, dir_fd=item.dir_fd)
            self._failpoints.hit("blob.before_sync")
            os.fsync(self._layout.blobs)
            self._failpoints.hit("blob.before_row")
            with self._index.transaction():
                for item in new:
                    file, hashes = item.file, item.hashes
                    self._index.add_file(file.cid, file.size, hashes.sha256, hashes.git_sha1, file.leaves)
                landed()
        if any(not item.hashes.known for item in new):
            self.on_unhashed()

    def file(self, cid: Cid, *, public_only: bool = False) -> StoredFile | None:
        with self._lock:
            row = self._index.file(cid)
            if row is None:
                return None
            public = self._index.is_public(row.id)
            if public_only and not public:
                return None
            self._touched_s[row.cid] = time.monotonic()
            if not public and row.cid != self._used_last:
                self._use(row)
            return self.stored(row, public=public)

    def _use(self, row: FileRow) -> None:
        """Which file of no model goes first when room is needed; a disk that is full is no reason to give none."""
        try:
            self._index.use_loose(row.id)
        except StorageError as exc:
            log.info("store.use_not_noted file=%s reason=%s", row.cid, exc)
        self._used_last = row.cid

    def of_oid(self, oid: bytes, size: int, *, public_only: bool = False) -> StoredFile | None:
        with self._lock:
            for row in self._index.of_oid(oid):
                if row.size == size and (found := self.file(row.cid, public_only=public_only)) is not None:
                    return found
            return None

    def leaves(self, cid: Cid) -> list[Leaf]:
        with self._lock:
            row = self._index.file(cid)
            return [] if row is None else self._index.leaves_of(row.id)

    def stored(self, row: FileRow, *, public: bool) -> StoredFile:
        sha256 = row.sha256 if is_known(row.sha256) else None
        return StoredFile(row.cid, self._layout.blob_path(row.cid), row.size, sha256, row.git_sha1, public)

    def loose(self) -> list[tuple[int, FileRow]]:
        """Files of no model, which no transfer under way may count on, each with its last use, which comes from the
        counter of the models' uses; longest unused first."""
        return [(used, row) for used, row in self._index.loose() if not self.is_guarded(row.cid)]

    def touch(self, cids: Iterable[Cid]) -> None:
        """These files are wanted by what the caller is about to do under the lock it holds."""
        self._touched_s.update((cid.canonical, time.monotonic()) for cid in cids)

    def is_guarded(self, cid: Cid) -> bool:
        """Whether a transfer under way asked for this file or made it, so will want it for its commit."""
        return cid in self._touched_s and self.guarded(self._touched_s[cid])

    def forget_touches(self) -> None:
        """No transfer is under way any more: nothing is counted on."""
        self._touched_s.clear()

    def guarded_files(self) -> list[FileRow]:
        rows = [self._index.file(cid) for cid in list(self._touched_s) if self.is_guarded(cid)]
        return [row for row in rows if row is not None]

    def leaf(self, cid: Cid, *, public_only: bool = False) -> bytes | None:
        """The block, from any file that holds it as a leaf and still has the right bytes."""
        for row in self._index.leaves(cid, public_only=public_only):
            block = self._read(row)
            if block is not None:
                return block
        return None

    def place(self, cid: Cid) -> LeafPlace | None:
        for row in self._index.leaves(cid):
            leaf = row.leaf
            return LeafPlace(self._layout.blob_path(row.file), leaf.offset, leaf.length, leaf.prefix, leaf.suffix)
        return None

    def drop(self, row: FileRow) -> int:
        """Removes a file that no model holds. Returns the bytes that are free now: none while a twin has the inode."""
        with self._lock, disk.storing(f"cannot remove {row.cid}"):
            self._index.drop_file(row.cid)
            self._touched_s.pop(row.cid, None)
            disk.unlink_if_there(str(row.cid), dir_fd=self._layout.blobs)
            return 0 if self._index.same_bytes(row.sha256) else row.size

    def open(self, cid: Cid) -> int:
        return disk.open_read(str(cid.canonical), dir_fd=self._layout.blobs)

    def _read(self, row: LeafRow) -> bytes | None:
        """None if the file was removed meanwhile, or is corrupt: then it has been quarantined."""
        leaf = row.leaf
        try:
            self._failpoints.hit("blob.read")
            fd = self.open(row.file)
            try:
                payload = disk.read_exactly(fd, leaf.length, leaf.offset)
            finally:
                os.close(fd)
        except FileNotFoundError:
            if self._index.file(row.file) is not None:
                self._on_corrupt(row.file, "its blob is missing")
            return None
        except OSError as exc:
            if exc.errno in (errno.EIO, errno.ELOOP):
                self._on_corrupt(row.file, f"cannot be read: {exc.strerror}")
                return None
            raise disk.storage_failure(exc, f"cannot read {row.file}") from exc
        block = leaf.wrap(payload)
        if not leaf.cid.matches(block):
            self._on_corrupt(row.file, f"bytes {leaf.offset} to {leaf.offset + leaf.length} are not {leaf.cid}")
            return None
        return block

    def _twin(self, item: Incoming) -> Cid | None:
        """A blob with these very bytes, by its row, that is really there."""
        for row in self._index.same_bytes(item.hashes.sha256):
            found = disk.stat_if_there(str(row.cid), dir_fd=self._layout.blobs)
            if found is not None and found.st_size == item.file.size:
                return row.cid
        return None

    def _place(self, item: Incoming, twin: Cid | None) -> None:
        name = str(item.file.cid.canonical)
        self._failpoints.hit("blob.before_rename")
        if twin is not None:
            disk.unlink_if_there(name, dir_fd=self._layout.blobs)
            self._link(str(twin.canonical), self._layout.blobs, name)
        elif item.keep:
            disk.unlink_if_there(name, dir_fd=self._layout.blobs)
            self._link(item.name, item.dir_fd, name)
        else:
            os.rename(item.name, name, src_dir_fd=item.dir_fd, dst_dir_fd=self._layout.blobs)
        self._failpoints.hit("blob.after_rename")

    def _link(self, source: str, source_fd: int, name: str) -> None:
        os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=self._layout.blobs, follow_symlinks=False)


def read_stored(leaf: Leaf, fd: int, offset: int, name: str, on_corrupt: Callable[[str, str], object]) -> bytes:
    """The leaf's payload, verified, out of an open blob. Raises IntegrityError, StorageError; on_corrupt has then been
    told the blob's name and why, unless the machine is to blame."""
    try:
        payload = disk.read_exactly(fd, leaf.length, offset)
    except OSError as exc:
        if exc.errno == errno.EIO:
            on_corrupt(name, "cannot be read")
        raise disk.storage_failure(exc, f"cannot read {name}") from exc
    if not leaf.cid.matches(leaf.wrap(payload)):
        on_corrupt(name, f"bytes at {offset} are not {leaf.cid}")
        leaf.cid.check(leaf.wrap(payload), f"stored file {name}")
    return payload
