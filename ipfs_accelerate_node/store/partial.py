"""A file that is being brought, leaf by leaf, in any order, over any number of starts.

``partial/<cid>`` is the data, at its final offsets; ``partial/<cid>.have`` lists what is durable: it is appended to
only after the data was synced, so it never claims a byte that a power cut could take. What was written but not
recorded is not lost by a mere kill: bytes found outside the record are hashed against their leaves and count if they
match.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.errors import BadContent, NotFound, StorageError
from ipfs_accelerate_node.store import disk, record
from ipfs_accelerate_node.store.batch import commit_all
from ipfs_accelerate_node.store.blobs import Incoming, read_stored
from ipfs_accelerate_node.store.hashing import GIT_BYTES, git_blob
from ipfs_accelerate_node.store.index import key
from ipfs_accelerate_node.store.lending import Lending
from ipfs_accelerate_node.store.quota import Hold
from ipfs_accelerate_node.store.ranges import Ranges
from ipfs_accelerate_node.store.sidecar import Hashes
from ipfs_accelerate_node.store.types import LeafPlace, StoredFile

if TYPE_CHECKING:
    from ipfs_accelerate_node.store.partials import Partials

_READ_BYTES = 1 << 20
LATER_BYTES = GIT_BYTES  # a larger file's hash as a whole is left for later, unless its twin may be stored
_CATCH_UP_BYTES = 4 << 20


class PartialFile:
    """Made by `Store.partial`. Methods may be called from several threads; each blocks for its I/O only."""

    def __init__(self, owner: Partials, cid: Cid, size: int, fd: int, hold: Hold) -> None:
        self.cid = cid.canonical
        self.size = size
        self.users = 1
        self.owner = owner
        self._fd = fd
        self._hold = hold
        self._lock = threading.RLock()
        self._lending = Lending(self._lock)
        self._open = True
        self._committed = False
        self._busy = 0
        self._written = Ranges()
        self._unproven = Ranges()
        self._pending: list[Leaf] = []
        self._leaves: dict[bytes, Leaf] = {}
        self._later = size > LATER_BYTES
        self._sha256 = hashlib.sha256()
        self._git_sha1 = git_blob(size)
        self._hashed = 0
        self._hashing = threading.RLock()  # of the running hashes; taken before _lock, or without waiting
        self._record = -1

    @property
    def written_bytes(self) -> int:
        """Verified bytes that are in the file, synced or not."""
        with self._lock:
            return self._written.total()

    def covers(self, offset: int, length: int) -> bool:
        """Whether all of these bytes are there and verified."""
        with self._lock:
            return self._written.covers(offset, offset + length)

    def covered(self, leaves: Iterable[Leaf]) -> list[bool]:
        """Of each leaf whether it is there and verified, all at one moment."""
        with self._lending.looking() as look:
            return [not look or self._written.covers(leaf.offset, leaf.offset + leaf.length) for leaf in leaves]

    def lend(self, offset: int, length: int) -> int | None:
        """A further descriptor, for the caller to close, if all of these bytes are there and verified: they stay
        readable under it when the file becomes a blob or is closed. None if not, or if it is closed already."""
        with self._lending.looking() as look:
            if look and not self._written.covers(offset, offset + length):
                return None
            with self._lending.numbers, disk.storing(f"cannot read {self.cid}"):
                return os.dup(self._fd) if self._open else None

    def missing(self, leaves: Iterable[Leaf]) -> list[Leaf]:
        """Those of the leaves still to be brought, in the order given.

        Hashes what an earlier run left without a record, and fills in leaves whose CID carries their bytes.
        """
        return [leaf for leaf in leaves if not self._has(leaf)]

    def write(self, leaf: Leaf, payload: Buffer) -> None:
        """Puts the leaf's payload, which the caller has verified, at its place. Not durable until `sync`.

        Raises StorageError (after evicting once, if the disk was full), BadContent if it does not fit the file.
        """
        if len(payload) != leaf.length or leaf.offset + leaf.length > self.size:
            raise BadContent(f"leaf {leaf.cid} does not fit {self.cid}: {len(payload)} bytes at {leaf.offset}")
        with self._using() as usable, disk.storing(f"cannot write {self.cid}"):
            if not usable or self.covers(leaf.offset, leaf.length):
                with self._lock:
                    self._leaves[key(leaf.cid)] = leaf
                return
            self._pwrite(payload, leaf.offset)
            self._note(leaf, payload)
            self._hash_on(leaf, payload)

    def sync(self) -> list[Leaf]:
        """Makes what was written durable, then records it. Returns the leaves that became durable by this call.

        Raises StorageError: then nothing since the last sync counts as written any more, because the kernel may have
        dropped those pages.
        """
        with self._using() as usable:
            with self._lock:
                leaves, self._pending = self._pending, []
            if not leaves or not usable:
                return leaves
            try:
                self.owner.failpoints.hit("partial.sync")
                os.fdatasync(self._fd)
                self.owner.failpoints.hit("partial.before_record")
                with self._lock:
                    self._append(leaves)
            except OSError as exc:
                self._forget(leaves)
                raise disk.storage_failure(exc, f"cannot sync {self.cid}") from exc
            return leaves

    def copy_from(self, leaves: Sequence[Leaf], place: LeafPlace) -> None:
        """Brings adjacent leaves from a file of this store, which has them in this order from place on, sharing its
        disk blocks where the file system can; each verified.

        Raises NotFound if that file is gone, IntegrityError if its bytes are wrong: it has then been quarantined. The
        leaves before the wrong one are here.
        """
        name, at = place.path.name, place.offset
        try:
            source = disk.open_read(place.path)
        except FileNotFoundError as exc:
            raise NotFound(f"{name} was removed meanwhile", cid=str(leaves[0].cid)) from exc
        except OSError as exc:
            raise disk.storage_failure(exc, f"cannot read {name}") from exc
        with disk.closing(source), self._using() as usable:
            shared = usable and self._share(leaves, source, at)
            for leaf in leaves if usable else ():
                payload = read_stored(leaf, source, at, name, self.owner.corrupt)
                at += leaf.length
                if shared:
                    self._note(leaf, payload)
                    self._hash_on(leaf, payload)
                else:
                    self.write(leaf, payload)

    def block(self, cid: Cid) -> bytes | None:
        """A leaf that is there, read back and hashed again."""
        leaf = self._leaves.get(key(cid))
        if leaf is None or (fd := self.lend(leaf.offset, leaf.length)) is None:
            return None
        with disk.storing(f"cannot read {self.cid}"), disk.closing(fd):
            block = leaf.wrap(disk.read_exactly(fd, leaf.length, leaf.offset))
        return block if leaf.cid.matches(block) else None

    def commit(self, file: FilePlan) -> StoredFile:
        """Makes the file a blob: complete, synced, read-only, indexed. This object is closed then.

        Raises BadContent (code incomplete) if a leaf is missing, StorageError. What was verified stays on an error.
        """
        commit_all([(self, file)])
        stored = self.owner.blobs.file(self.cid)
        if stored is None:
            raise StorageError(f"{self.cid} was evicted as soon as it was stored")
        return stored

    def discard(self) -> None:
        """Gives up the file and all that was brought of it."""
        with self._lock:
            if self._open:
                self._close_fds()
                self.owner.remove(self.cid)

    def close(self) -> None:
        """Ends the use; what was verified stays for another time. The last user's call closes it."""
        if self.owner.leave(self, self._hold):
            with self._lock:
                self._close_fds()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def drop_hold(self) -> None:
        self._hold.release()

    # for `commit_all`: in this order, all within `ending`

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Nobody else writes, hashes or closes meanwhile."""
        with self._hashing, self._lock:
            yield

    def prepare(self, file: FilePlan) -> bool:
        """Whether all is there, hashed, and only has to become durable. False if it is a blob already."""
        if self.owner.blobs.file(self.cid) is not None:
            self._committed = True
            if self._open:
                self.discard()
            return False
        self._check_open()
        missing = self.missing(file.leaves)
        if missing or file.size != self.size:
            raise BadContent(f"{file.path or self.cid}: {len(missing)} leaves missing", code="incomplete")
        self._lending.whole = True
        with disk.storing(f"cannot commit {self.cid}"):
            os.ftruncate(self._fd, self.size)
            self._later = self._later and not self.owner.blobs.may_equal(file)
            if not self._later:
                self._catch_up(self.size)
        return True

    def make_durable(self) -> None:
        """In any thread, while another one is within `ending`. After an error what was not recorded no longer counts
        as written, as after `sync`."""
        try:
            self.owner.failpoints.hit("partial.before_fsync")
            os.fchmod(self._fd, 0o400)
            os.fsync(self._fd)
        except OSError as exc:
            self._lending.whole = False
            for leaf in self._pending:
                self._written.remove(leaf.offset, leaf.offset + leaf.length)
            raise disk.storage_failure(exc, f"cannot commit {self.cid}") from exc

    def incoming(self, file: FilePlan) -> Incoming:
        known = Hashes(self._sha256.digest(), self._git_sha1.digest() if self._git_sha1 else b"")
        hashes = Hashes.later(self.cid) if self._later else known
        return Incoming(file, hashes, str(self.cid), self.owner.layout.partial)

    def became_blob(self) -> list[Leaf]:
        """Closes. Returns the leaves that were not durable before."""
        leaves, self._pending = self._pending, []
        self._committed = True
        self._close_fds()
        self.owner.forget(self.cid)
        with disk.storing(f"cannot commit {self.cid}"):
            disk.unlink_if_there(f"{self.cid}{record.SUFFIX}", dir_fd=self.owner.layout.partial)
        return leaves

    # private

    def load(self) -> None:
        """Reads the record of an earlier run, if there is one, and finds data that it does not list."""
        name = f"{self.cid}{record.SUFFIX}"
        end = 0
        with contextlib.suppress(FileNotFoundError):
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            self._record = os.open(name, flags, dir_fd=self.owner.layout.partial)
            data = disk.read_exactly(self._record, os.fstat(self._record).st_size, 0)
            self._written, end = record.read(data, self.size, os.fstat(self._fd).st_size)
            os.ftruncate(self._record, end)
            if end == 0:
                disk.write_all(self._record, record.head(self.size), 0)
        for start, stop in disk.data_ranges(self._fd, self.size):
            self._unproven.add(start, stop)
        for start, stop in self._written:
            self._unproven.remove(start, stop)
        self._hold.land(self._written.total())

    def _has(self, leaf: Leaf) -> bool:
        start, end = leaf.offset, leaf.offset + leaf.length
        with self._using() as usable, self._lock:
            if not usable or self._written.covers(start, end):
                self._leaves[key(leaf.cid)] = leaf
                return True
            inline = leaf.cid.inline
            if inline is not None:
                self.write(leaf, inline[len(leaf.prefix) : len(inline) - len(leaf.suffix)])
                return True
            if not self._unproven.covers(start, end):
                return False
            self._unproven.remove(start, end)
            with disk.storing(f"cannot read {self.cid}"):
                payload = disk.read_exactly(self._fd, leaf.length, start)
            if not leaf.cid.matches(leaf.wrap(payload)):
                return False
            self._note(leaf, payload)
            self._hash_on(leaf, payload)
            return True

    def _note(self, leaf: Leaf, payload: Buffer) -> None:
        with self._lock:
            self._written.add(leaf.offset, leaf.offset + leaf.length)
            self._pending.append(leaf)
            self._leaves[key(leaf.cid)] = leaf
            self._hold.land(leaf.length)

    def _hash_on(self, leaf: Leaf, payload: Buffer) -> None:
        """Brings the file's own hashes forward, beside other writers; a bounded step, so that no caller waits long."""
        if self._later or not self._hashing.acquire(blocking=False):
            return
        try:
            if leaf.offset == self._hashed:
                self._hash(payload)
            with disk.storing(f"cannot read {self.cid}"):
                self._catch_up(_CATCH_UP_BYTES)
        finally:
            self._hashing.release()

    def _hash(self, data: Buffer) -> None:
        self._sha256.update(data)
        if self._git_sha1:
            self._git_sha1.update(data)
        self._hashed += len(data)

    def _catch_up(self, limit_bytes: int) -> None:
        """Hashes what came before its turn, as far as it lies without a gap, out of the page cache."""
        stop = min(self._hashed + limit_bytes, self.size)
        while self._hashed < stop:
            count = min(_READ_BYTES, self.size - self._hashed)
            if not self.covers(self._hashed, count):
                return
            data = disk.read_exactly(self._fd, count, self._hashed)
            if len(data) != count:
                raise StorageError(f"{self.cid} was cut short on disk")
            self._hash(data)

    def _append(self, leaves: Sequence[Leaf]) -> None:
        """The record begins with the first entry: a file that is whole at once never needs one."""
        if self._record < 0:
            self._record = record.create(f"{self.cid}{record.SUFFIX}", self.owner.layout.partial, self.size)
        ranges = Ranges()
        for leaf in leaves:
            ranges.add(leaf.offset, leaf.offset + leaf.length)
        disk.write_all(self._record, record.entries(ranges), os.fstat(self._record).st_size)

    def _pwrite(self, payload: Buffer, offset: int) -> None:
        try:
            self.owner.failpoints.hit("partial.write")
            disk.write_all(self._fd, memoryview(payload), offset)
        except OSError as exc:
            if not disk.is_full(exc) or not self.owner.relieve(len(payload)):
                raise
            disk.write_all(self._fd, memoryview(payload), offset)

    def _share(self, leaves: Sequence[Leaf], source: int, at: int) -> bool:
        start, length = leaves[0].offset, sum(leaf.length for leaf in leaves)
        with disk.storing(f"cannot copy into {self.cid}"):
            return 0 < length <= self.size - start and disk.clone_range(self._fd, start, source, at, length)

    @contextlib.contextmanager
    def _using(self) -> Iterator[bool]:
        """Keeps the descriptors open meanwhile. False where another user committed the file: all is there."""
        with self._lock:
            if self._committed:
                yield False
                return
            self._check_open()
            self._busy += 1
        try:
            yield True
        finally:
            with self._lock:
                self._busy -= 1
                self._close_idle()

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError(f"{self.cid} was closed")

    def _close_fds(self) -> None:
        self._open = False
        self._close_idle()

    def _close_idle(self) -> None:
        """A number that is closed may at once be another file's: never while a call uses it."""
        if not self._open and self._busy == 0 and self._fd >= 0:
            with self._lending.numbers:
                os.close(self._fd)
                if self._record >= 0:
                    os.close(self._record)
                self._fd = self._record = -1

    def _forget(self, leaves: Iterable[Leaf]) -> None:
        with self._lock:
            for leaf in leaves:
                self._written.remove(leaf.offset, leaf.offset + leaf.length)
                self._leaves.pop(key(leaf.cid), None)
