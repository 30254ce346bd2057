"""sha256 of whole files that a fetch left for later: at idle, or at once for who needs it.

A file that came by its CID is verified leaf by leaf; its hash as a whole is what Hugging Face calls its oid, and takes
as long again. Until it is known the file's row has a stand-in. Every leaf is checked once more on the way, so that no
oid is ever computed of bytes that went bad in between.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.index import FileRow, Index
from ipfs_accelerate_node.store.models import Models
from ipfs_accelerate_node.store.sidecar import Hashes, is_known

log = logging.getLogger(__name__)

_STEP_BYTES = 16 << 20


class _Wrong(Exception):
    """The file on disk is not what its CID says."""


@dataclass(eq=False, slots=True)
class _Pass:
    """One file's bytes, read once however many wait for the result."""

    leaves: list[Leaf]
    lock: threading.Lock = field(default_factory=threading.Lock)
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    next: int = 0

    @property
    def done(self) -> bool:
        return self.next == len(self.leaves)

    def forward(self, fd: int, limit_bytes: int) -> int:
        """Hashes on, at least one leaf. Returns the bytes. Raises _Wrong, OSError."""
        count = 0
        while not self.done and (count == 0 or count < limit_bytes):
            leaf = self.leaves[self.next]
            payload = disk.read_exactly(fd, leaf.length, leaf.offset)
            if not leaf.cid.matches(leaf.wrap(payload)):
                raise _Wrong(f"bytes {leaf.offset} to {leaf.offset + leaf.length} are not {leaf.cid}")
            self.sha256.update(payload)
            self.next += 1
            count += max(1, leaf.length)
        return count


class Digests:
    """Blocking and thread-safe; takes the store's lock for rows only. on_unhashed: told in any thread that there is a
    further file to hash."""

    def __init__(self, index: Index, models: Models, lock: threading.RLock) -> None:
        self._index = index
        self._models = models
        self._lock = lock
        self._passes: dict[Cid, _Pass] = {}
        self.on_unhashed: Callable[[], None] = lambda: None

    def of(self, cid: Cid) -> Hashes:
        """Of a stored file; waits until it is hashed. Raises NotFound if it is not here, or turns out corrupt: then it
        has been quarantined."""
        while (row := self._index.file(cid)) is not None:
            if is_known(row.sha256):
                return Hashes(row.sha256, row.git_sha1)
            self._forward(row, _STEP_BYTES)
        raise NotFound(f"{cid} is not stored here", cid=str(cid))

    def of_size(self, size: int) -> bool:
        """Afterwards every stored file of that size has its sha256. Whether one had not."""
        waiting = [row.cid for row in self._index.of_size(size) if not is_known(row.sha256)]
        for cid in waiting:
            self._settle(cid)
        return bool(waiting)

    def forward(self, limit_bytes: int = _STEP_BYTES) -> bool:
        """One step of what is left to hash; False if nothing is."""
        waiting = self._index.unhashed()
        row = self._index.file(waiting[0]) if waiting else None
        if row is not None:
            self._forward(row, limit_bytes)
        return bool(waiting)

    def learned(self, cid: Cid, sha256: bytes) -> None:
        """Somebody hashed all of a file whose leaves are right."""
        with self._lock, disk.storing(f"cannot note the hash of {cid}"):
            row = self._index.file(cid)
            if row is None or not self._index.set_sha256(row.cid, sha256):
                return
            for root in {root for root, _ in self._index.homes(row.id)}:
                self._models.note_hashes(root)
        log.debug("store.hashed file=%s", cid)

    def distinguish(self, file: FilePlan) -> bool:
        """Before a file without a sha256 becomes a blob: whether that may have the bytes of one that is stored, so that
        it needs its hash now. Files of other leaves at the same places differ for sure."""
        return any(row.cid != file.cid.canonical and self._may_equal(row, file.leaves) for row in self._of_size(file))

    def hash_alike(self, file: FilePlan) -> None:
        """Before a file with a sha256 becomes a blob: those that may have its bytes get theirs too."""
        for row in self._of_size(file):
            if not is_known(row.sha256) and row.cid != file.cid.canonical and self._may_equal(row, file.leaves):
                self._settle(row.cid)

    def _of_size(self, file: FilePlan) -> list[FileRow]:
        return self._index.of_size(file.size)

    def _may_equal(self, row: FileRow, leaves: tuple[Leaf, ...]) -> bool:
        theirs = {leaf.offset: leaf for leaf in self._index.leaves_of(row.id)}
        return not any(
            (other := theirs.get(leaf.offset)) is not None and _differ(leaf, other) for leaf in leaves if leaf.length
        )

    def _settle(self, cid: Cid) -> None:
        try:
            self.of(cid)
        except NotFound as exc:
            log.info("store.not_hashed file=%s reason=%s", cid, exc)

    def _forward(self, row: FileRow, limit_bytes: int) -> None:
        with self._lock:
            running = self._passes.get(row.cid)
            if running is None:
                now = self._index.file(row.cid)
                if now is None or is_known(now.sha256):
                    return  # another thread ended it since the row was read
                running = self._passes[row.cid] = _Pass(self._index.leaves_of(row.id))
        with running.lock:
            if self._passes.get(row.cid) is not running:
                return  # another thread ended it
            try:
                self._step(running, row, limit_bytes)
            except _Wrong as exc:
                self._end(row.cid)
                self._models.quarantine(row.cid, str(exc))
                return
            if running.done:
                self.learned(row.cid, running.sha256.digest())
                self._end(row.cid)

    def _step(self, running: _Pass, row: FileRow, limit_bytes: int) -> None:
        try:
            fd = self._models.blobs.open(row.cid)
            try:
                running.forward(fd, limit_bytes)
            finally:
                os.close(fd)
        except FileNotFoundError as exc:
            self._end(row.cid)
            if self._index.file(row.cid) is not None:
                raise _Wrong("its blob is missing") from exc
        except OSError as exc:
            if exc.errno in (errno.EIO, errno.ELOOP):
                raise _Wrong(f"cannot be read: {exc.strerror}") from exc
            raise disk.storage_failure(exc, f"cannot read {row.cid}") from exc

    def _end(self, cid: Cid) -> None:
        with self._lock:
            self._passes.pop(cid, None)


def _differ(one: Leaf, other: Leaf) -> bool:
    """Whether two leaves at the same offset have other bytes for sure: same form, same hash function, other hash."""
    same_form = (one.length, one.prefix, one.suffix, one.cid.codec, one.cid.hash_code) == (
        other.length,
        other.prefix,
        other.suffix,
        other.cid.codec,
        other.cid.hash_code,
    )
    return same_form and one.cid.digest != other.cid.digest
