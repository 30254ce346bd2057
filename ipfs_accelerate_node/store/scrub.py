"""`verify`: reads every byte again, and takes down what is not what its CID says."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import StorageError
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.digests import Digests
from ipfs_accelerate_node.store.index import FileRow, Index
from ipfs_accelerate_node.store.layout import Layout
from ipfs_accelerate_node.store.models import Models
from ipfs_accelerate_node.store.sidecar import is_known
from ipfs_accelerate_node.store.types import CorruptFile, VerifyReport


class Scrub:
    """Runs beside readers and writers; a file that is evicted meanwhile is passed over."""

    def __init__(self, layout: Layout, index: Index, models: Models, digests: Digests) -> None:
        self._layout = layout
        self._index = index
        self._models = models
        self._digests = digests
        self._progress: Callable[[int], None] = lambda _: None

    def run(self, root: Cid | None, progress: Callable[[int], None] | None) -> VerifyReport:
        """root: only that model; None: everything, also files of no model. progress: bytes checked so far."""
        self._progress = progress or self._progress
        roots = [self._models.get(root).root] if root is not None else [m.root for m in self._models.shelf.models()]
        corrupt = [found for root in roots if (found := self._check_plan(root)) is not None]
        rows = self._rows(roots, every=root is None)
        checked, total = 0, 0
        inodes: dict[tuple[int, int], str | None] = {}
        for row in rows:
            reason, count = self._check_file(row, inodes, total)
            checked, total = checked + 1, total + count
            if reason is not None and self._index.file(row.cid) is not None:
                corrupt.append(self._models.quarantine(row.cid, reason))
        for root in roots:
            corrupt.extend(self._check_links(root))
        return VerifyReport(checked, total, tuple(corrupt))

    def _rows(self, roots: Iterable[Cid], *, every: bool) -> list[FileRow]:
        if every:
            return self._index.files()
        sql = (
            "SELECT DISTINCT files.cid FROM files JOIN members ON file=files.id"
            " JOIN models ON models.id=model WHERE root=?"
        )
        cids = [Cid.decode(row[0]) for root in roots for row in self._index.all(sql, (bytes(root),))]
        return [row for cid in cids if (row := self._index.file(cid)) is not None]

    def _check_plan(self, root: Cid) -> CorruptFile | None:
        """A plan that went bad while the index is whole is no loss yet, but would be at the next rebuild."""
        try:
            record = self._models.read_plan(root)
        except StorageError as exc:
            self._models.take_down(root)
            return CorruptFile(root, (f"{root}.plan",), (root,), str(exc))
        bad = [cid for cid, block in record.nodes if not cid.matches(block)]
        if bad:
            self._models.take_down(root)
            return CorruptFile(bad[0], (f"{root}.plan",), (root,), "a node block is not what its CID says")
        return None

    def _check_file(
        self, row: FileRow, inodes: dict[tuple[int, int], str | None], before: int
    ) -> tuple[str | None, int]:
        """What is wrong with the file, if anything, and how many bytes were read for that."""
        try:
            fd = self._models.blobs.open(row.cid)
        except FileNotFoundError:
            return "its blob is missing", 0
        except OSError as exc:
            return self._unreadable(exc, row), 0
        try:
            found = os.fstat(fd)
            inode = (found.st_dev, found.st_ino)
            if not stat.S_ISREG(found.st_mode) or found.st_size != row.size:
                return f"it has {found.st_size} bytes, not {row.size}", 0
            if inode in inodes:  # equal bytes under another CID: hashed already, by that one's leaves
                return inodes[inode], 0
            reason = self._check_leaves(fd, row, before)
            inodes[inode] = reason
            return reason, row.size
        except OSError as exc:
            return self._unreadable(exc, row), 0
        finally:
            os.close(fd)

    def _check_leaves(self, fd: int, row: FileRow, before: int) -> str | None:
        """A file that was not hashed as a whole yet is, as its bytes are read anyway."""
        sha256 = None if is_known(row.sha256) else hashlib.sha256()
        for leaf in self._index.leaves_of(row.id):
            payload = disk.read_exactly(fd, leaf.length, leaf.offset)
            if not leaf.cid.matches(leaf.wrap(payload)):
                return f"bytes {leaf.offset} to {leaf.offset + leaf.length} are not {leaf.cid}"
            if sha256:
                sha256.update(payload)
            self._progress(before + leaf.offset + leaf.length)
        if sha256:
            self._digests.learned(row.cid, sha256.digest())
        return None

    def _unreadable(self, exc: OSError, row: FileRow) -> str:
        failure = disk.storage_failure(exc, f"cannot read {row.cid}")
        if not isinstance(failure, StorageError):  # out of descriptors: says nothing about the file
            raise failure from exc
        return str(failure)

    def _check_links(self, root: Cid) -> list[CorruptFile]:
        """Each path of a model is its blob; one that is something else is put right, and reported."""
        reason = "its link was replaced; put right"
        return [CorruptFile(cid, (path,), (root,), reason) for cid, path in self._models.mend(root)]
