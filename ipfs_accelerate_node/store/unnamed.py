"""A file that is being brought before anyone knows its CID: only how long it is, and the oid that it must turn out to
have (sha256, or git's blob sha1).

``unnamed/<oid>`` is the data, at its final offsets; ``unnamed/<oid>.have`` lists what came and is durable, appended to
only after a sync. Nothing in it is verified before all of it is: bytes are hashed in file order as far as they lie
without a gap, mostly while they are still in the page cache, each leaf by itself too. So once the oid is right the file
is a blob without being read again. What an earlier run left is hashed again from the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ipfs_accelerate_node.content.build import CHUNK_BYTES, file_dag
from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import BadContent, StorageError
from ipfs_accelerate_node.store import disk, record
from ipfs_accelerate_node.store.blobs import Incoming
from ipfs_accelerate_node.store.hashing import GIT_BYTES, leaves_of
from ipfs_accelerate_node.store.quota import Hold
from ipfs_accelerate_node.store.ranges import Ranges
from ipfs_accelerate_node.store.sidecar import Hashes

if TYPE_CHECKING:
    from ipfs_accelerate_node.store.unnameds import Unnameds

_CATCH_UP_BYTES = 4 << 20
_SYNCS_AT_ONCE = 8


class UnnamedFile:
    """Made by `Unnameds.open`, for one user at a time. Methods may be called from several threads; each blocks for its
    I/O only. Calls that change the file must have ended before `close`."""

    def __init__(self, owner: Unnameds, oid: str, size: int, fd: int, hold: Hold) -> None:
        self.oid = oid
        self.size = size
        self.owner = owner
        self.cid: Cid | None = None  # once it is a blob
        self._fd = fd
        self._hold = hold
        self._lock = threading.RLock()
        self._hashing = threading.RLock()  # taken before _lock, or without waiting
        self._received = Ranges()
        self._pending = Ranges()
        self._record = -1
        self._begin()

    @property
    def received_bytes(self) -> int:
        with self._lock:
            return self._received.total()

    @property
    def actual(self) -> str:
        """The oid that the bytes have, once all of them are hashed."""
        digest = self._sha256.digest() if len(self.oid) == 64 or self._git_sha1 is None else self._git_sha1.digest()
        return digest.hex()

    def missing(self) -> list[tuple[int, int]]:
        """What has not come, in file order."""
        gaps, at = [], 0
        with self._lock:
            for start, stop in self._received:
                if start > at:
                    gaps.append((at, start))
                at = stop
        return [*gaps, (at, self.size)] if at < self.size else gaps

    def reaches(self, offset: int) -> int:
        """Where the bytes end that came and lie without a gap from offset; offset itself if there are none."""
        with self._lock:
            return next((stop for start, stop in self._received if start <= offset < stop), offset)

    def write(self, offset: int, payload: Buffer) -> None:
        """Bytes as they came. Raises StorageError (after evicting once, if the disk was full), BadContent for what does
        not fit."""
        stop = offset + len(payload)
        if offset < 0 or stop > self.size:
            raise BadContent(f"bytes {offset} to {stop} are not of a file of {self.size}")
        with disk.storing(f"cannot write the file {self.oid}"):
            self._pwrite(payload, offset)
            if offset % CHUNK_BYTES == 0 and (len(payload) == CHUNK_BYTES or stop == self.size <= offset + CHUNK_BYTES):
                self._known[offset // CHUNK_BYTES] = hashlib.sha256(payload).digest()
            with self._lock:
                self._received.add(offset, stop)
                self._pending.add(offset, stop)
            self._hold.land(len(payload))
            self._hash_on(offset, payload)

    def take(self, path: os.PathLike[str]) -> bool:
        """The bytes of another file of this disk in place of what came, sharing its blocks where that is possible.
        False, and nothing is here, if that file is gone or not as long."""
        self.clear()
        with disk.storing(f"cannot copy into the file {self.oid}"):
            try:
                source = disk.open_read(path)
            except FileNotFoundError:
                return False
            try:
                if os.fstat(source).st_size != self.size:
                    return False
                if not disk.clone(self._fd, source):
                    while os.sendfile(self._fd, source, None, CHUNK_BYTES):
                        pass
            finally:
                os.close(source)
        with self._lock:
            self._received.add(0, self.size)
            self._pending.add(0, self.size)
        self._hold.land(self.size)
        return True

    def sync(self) -> None:
        """Makes what came durable, then records it. Raises StorageError: then nothing since the last sync counts as
        received any more, because the kernel may have dropped those pages."""
        with self._lock:
            spans, self._pending = self._pending, Ranges()
        if self._fd < 0 or not spans.total():
            return
        try:
            self.owner.failpoints.hit("unnamed.sync")
            os.fdatasync(self._fd)
            self.owner.failpoints.hit("unnamed.before_record")
            with self._lock:
                self._append(spans)
        except OSError as exc:
            with self._lock:
                for start, stop in spans:
                    self._received.remove(start, stop)
            with self._hashing:
                self._begin()
            raise disk.storage_failure(exc, f"cannot sync the file {self.oid}") from exc

    def check(self) -> bool:
        """Whether all of it came and has its oid. Blocks until what is not hashed yet is."""
        with self._hashing, disk.storing(f"cannot read the file {self.oid}"):
            self._catch_up(self.size)
            return self._hashed == self.size and not self.missing() and self.actual == self.oid

    def clear(self) -> None:
        """Forgets all that came."""
        with self._hashing, self._lock, disk.storing(f"cannot clear the file {self.oid}"):
            if self._record >= 0:
                os.close(self._record)
                self._record = -1
            disk.unlink_if_there(f"{self.oid}{record.SUFFIX}", dir_fd=self.owner.folder)
            os.ftruncate(self._fd, 0)
            self._received, self._pending = Ranges(), Ranges()
            self._hold.landed_bytes = 0
            self._begin()

    def lend(self) -> int:
        """A further descriptor, for the caller to close: what came stays readable under it, whatever becomes of the
        file's name."""
        with self._lock, disk.storing(f"cannot read the file {self.oid}"):
            if self._fd < 0:
                raise StorageError(f"the file {self.oid} was closed")
            return os.dup(self._fd)

    def close(self) -> None:
        """Ends the use. What came stays for another time; never raises for what cannot be synced."""
        with contextlib.suppress(StorageError):
            self.sync()
        self._close_fds()
        self.owner.leave(self, self._hold)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # for `Unnameds` and `store_all`

    def load(self) -> None:
        """Reads the record of an earlier run."""
        name = f"{self.oid}{record.SUFFIX}"
        with contextlib.suppress(FileNotFoundError):
            self._record = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.owner.folder)
            data = disk.read_exactly(self._record, os.fstat(self._record).st_size, 0)
            self._received, end = record.read(data, self.size, os.fstat(self._fd).st_size)
            os.ftruncate(self._record, end)
            if end == 0:
                disk.write_all(self._record, record.head(self.size), 0)
        self._hold.land(self._received.total())

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        with self._hashing, self._lock:
            yield

    def make_durable(self) -> None:
        """In any thread, while another one is within `ending`. Raises StorageError."""
        with disk.storing(f"cannot store the file {self.oid}"):
            self.owner.failpoints.hit("unnamed.before_fsync")
            os.ftruncate(self._fd, self.size)
            os.fchmod(self._fd, 0o400)
            os.fsync(self._fd)

    def incoming(self) -> Incoming:
        built = file_dag(leaves_of(self._digests, self.size))
        hashes = Hashes(self._sha256.digest(), self._git_sha1.digest() if self._git_sha1 else b"")
        return Incoming(FilePlan("", built.cid, built.size, built.leaves), hashes, self.oid, self.owner.folder)

    def drop_hold(self) -> None:
        self._hold.release()

    def became(self, cid: Cid) -> None:
        self.cid = cid
        self._pending = Ranges()

    # private

    def _begin(self) -> None:
        """Hashing starts from the file's first byte."""
        self._hashed = 0
        self._sha256 = hashlib.sha256()
        self._git_sha1 = (
            hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            if len(self.oid) == 40 or self.size <= GIT_BYTES
            else None
        )
        self._leaf = hashlib.sha256()
        self._digests: list[bytes] = []
        self._known: dict[int, bytes] = {}  # of leaves that came whole, ahead of their turn

    def _hash_on(self, offset: int, payload: Buffer) -> None:
        """Brings the hashes forward, beside other writers; a bounded step, so that no caller waits long."""
        if not self._hashing.acquire(blocking=False):
            return
        try:
            if offset == self._hashed:
                self._hash(payload)
            self._catch_up(_CATCH_UP_BYTES)
        finally:
            self._hashing.release()

    def _catch_up(self, limit_bytes: int) -> None:
        stop = min(self._hashed + limit_bytes, self.reaches(self._hashed))
        while self._hashed < stop:
            count = min(CHUNK_BYTES - self._hashed % CHUNK_BYTES, stop - self._hashed)
            data = disk.read_exactly(self._fd, count, self._hashed)
            if len(data) != count:
                raise StorageError(f"the file {self.oid} was cut short on disk")
            self._hash(data)

    def _hash(self, payload: Buffer) -> None:
        view = memoryview(payload)
        self._sha256.update(view)
        if self._git_sha1 is not None:
            self._git_sha1.update(view)
        while view:
            number, within = divmod(self._hashed, CHUNK_BYTES)
            part = view[: CHUNK_BYTES - within]
            if number not in self._known:
                self._leaf.update(part)
            self._hashed += len(part)
            view = view[len(part) :]
            if self._hashed % CHUNK_BYTES == 0 or self._hashed == self.size:
                self._digests.append(self._known.pop(number, b"") or self._leaf.digest())
                self._leaf = hashlib.sha256()

    def _append(self, spans: Ranges) -> None:
        if self._record < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._record = os.open(f"{self.oid}{record.SUFFIX}", flags, 0o600, dir_fd=self.owner.folder)
            disk.write_all(self._record, record.head(self.size), 0)
            os.fsync(self.owner.folder)
        disk.write_all(self._record, record.entries(spans), os.fstat(self._record).st_size)

    def _pwrite(self, payload: Buffer, offset: int) -> None:
        try:
            self.owner.failpoints.hit("unnamed.write")
            disk.write_all(self._fd, memoryview(payload), offset)
        except OSError as exc:
            if not disk.is_full(exc) or not self.owner.relieve(len(payload)):
                raise
            disk.write_all(self._fd, memoryview(payload), offset)

    def _close_fds(self) -> None:
        with self._hashing, self._lock:
            for fd in (self._fd, self._record):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._record = -1


def store_all(files: Sequence[UnnamedFile]) -> None:
    """Makes each a blob, and says under which CID (`UnnamedFile.cid`); all are of one store. Blocks.

    Raises BadContent (code incomplete) if one is not verified, StorageError; then none became one.
    """
    if not files:
        return
    owner = files[0].owner
    with contextlib.ExitStack() as held:
        for file in sorted(files, key=lambda file: file.oid):
            held.enter_context(file.ending())
        for file in files:
            if not file.check():
                raise BadContent(f"the file {file.oid} is not whole", code="incomplete")
        _sync(files)
        found = [(file, file.incoming()) for file in files]
        distinct = {incoming.file.cid: incoming for _, incoming in found}  # two oids may be of the same bytes
        owner.blobs.admit(list(distinct.values()), landed=partial(_release, files))
        for file, incoming in found:
            file.became(incoming.file.cid)


def _release(files: Sequence[UnnamedFile]) -> None:
    for file in files:
        file.drop_hold()


def _sync(files: Sequence[UnnamedFile]) -> None:
    """All of them, whatever becomes of each; then raises the first failure."""
    if len(files) == 1:
        files[0].make_durable()
        return
    with ThreadPoolExecutor(min(_SYNCS_AT_ONCE, len(files)), thread_name_prefix="sync") as threads:
        syncs = [threads.submit(file.make_durable) for file in files]
    for sync in syncs:
        sync.result()
