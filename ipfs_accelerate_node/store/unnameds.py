"""All files that are being brought without a CID: one in use at a time per oid, and those that rest for the next try.

Also which of them strangers were given before they were verified (``<oid>.given``): whoever holds such bytes must not
take them for the beginning of the right file, should it come again from elsewhere.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent, Conflict, QuotaExceeded
from ipfs_accelerate_node.store import disk, record
from ipfs_accelerate_node.store.blobs import Blobs
from ipfs_accelerate_node.store.failpoints import Failpoints
from ipfs_accelerate_node.store.layout import Layout
from ipfs_accelerate_node.store.quota import Hold, Ledger, Reservation
from ipfs_accelerate_node.store.ranges import Ranges
from ipfs_accelerate_node.store.unnamed import UnnamedFile

GIVEN = ".given"
GIVEN_S = 3600.0  # so long a client may come back for the rest of what it was given
_OID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


class Unnameds:
    """Blocks; thread-safe."""

    def __init__(self, layout: Layout, blobs: Blobs, ledger: Ledger, failpoints: Failpoints) -> None:
        self.blobs = blobs
        self.failpoints = failpoints
        self._layout = layout
        self._ledger = ledger
        self._lock: threading.RLock = ledger.lock
        self._open: dict[str, UnnamedFile] = {}
        self._resting: dict[str, Hold] = {}

    @property
    def folder(self) -> int:
        return self._layout.unnamed

    def scan(self) -> None:
        """At start: drops what is none of ours, what may be a blob by now, and marks that have expired; counts what
        rests."""
        names = set(os.listdir(self.folder))
        for name in names:
            oid = name.removesuffix(record.SUFFIX).removesuffix(GIVEN)
            found = disk.stat_if_there(name, dir_fd=self.folder)
            if found is None:  # went with the file that it belongs to
                continue
            expired = name.endswith(GIVEN) and not 0 <= time.time() - found.st_mtime < GIVEN_S
            stray = name.endswith(record.SUFFIX) and oid not in names
            whole = name == oid and (found.st_nlink != 1 or not found.st_mode & stat.S_IWUSR)
            if not _OID.fullmatch(oid) or not stat.S_ISREG(found.st_mode) or expired or stray:
                self._remove(name)
            elif whole:  # a crash on its way into the store: verified, but never to be written to again
                self._keep_whole(name)
            elif name == oid:
                self._count(oid)

    def open(self, oid: str, size: int, reservation: Reservation | None = None) -> UnnamedFile:
        """The file of that oid as far as it was brought. Its size comes out of the reservation, or any that is open,
        else out of free room. Raises QuotaExceeded, Conflict while somebody brings it."""
        if not _OID.fullmatch(oid):
            raise BadContent(f"{oid[:80]!a} is no oid")
        with self._lock, disk.storing(f"cannot open the file {oid}"):
            self._layout.check()
            if oid in self._open:
                raise Conflict(f"the file {oid} is being fetched already")
            hold = self._resting.pop(oid, None) or self._ledger.hold()
            try:
                hold.resize(size, source=reservation)
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(oid, flags, 0o600, dir_fd=self.folder)
            except (OSError, QuotaExceeded):
                self._rest(oid, hold)
                raise
            file = UnnamedFile(self, oid, size, fd, hold)
            try:
                file.load()
            except OSError:
                os.close(fd)
                self._rest(oid, hold)
                raise
            self._open[oid] = file
            return file

    def brought(self, oid: str, size: int) -> int:
        """Bytes of it that an earlier or present transfer has made durable; changes nothing."""
        found = disk.stat_if_there(oid, dir_fd=self.folder)
        if found is None:
            return 0
        received = Ranges()
        with disk.storing(f"cannot read the record of {oid}"):
            if disk.stat_if_there(f"{oid}{record.SUFFIX}", dir_fd=self.folder) is not None:
                data = disk.read_file(f"{oid}{record.SUFFIX}", dir_fd=self.folder, limit_bytes=1 << 30)
                received, _ = record.read(data, size, found.st_size)
        return received.total()

    def name(self, oid: str, cid: Cid) -> bool:
        """The file turned out to be that CID's: its bytes become those of the partial file, to be hashed leaf by leaf
        when someone asks for them. False if there is nothing of it, it is in use, or the CID has a partial file."""
        with self._lock, disk.storing(f"cannot name the file {oid}"):
            target = str(cid.canonical)
            there = disk.stat_if_there(target, dir_fd=self._layout.partial)
            if oid in self._open or oid not in self._resting or there is not None:
                return False
            os.rename(oid, target, src_dir_fd=self.folder, dst_dir_fd=self._layout.partial)
            self._drop(oid)
            return True

    # what strangers were given before it was verified

    def note_given(self, oid: str) -> bool:
        """Somebody is about to be given bytes of it that are not verified. False if somebody was before, and may still
        have them."""
        with disk.storing(f"cannot note who has the file {oid}"):
            if self.was_given(oid):
                return False
            self._remove(f"{oid}{GIVEN}")
            os.close(disk.create(f"{oid}{GIVEN}", dir_fd=self.folder))
            return True

    def was_given(self, oid: str) -> bool:
        found = disk.stat_if_there(f"{oid}{GIVEN}", dir_fd=self.folder)
        return found is not None and 0 <= time.time() - found.st_mtime < GIVEN_S

    def forget_given(self, oid: str) -> None:
        """All that was given of it turned out right."""
        with disk.storing(f"cannot note who has the file {oid}"):
            self._remove(f"{oid}{GIVEN}")

    # room

    def resting_bytes(self) -> int:
        with self._lock:
            return sum(hold.size_bytes for hold in self._resting.values())

    def drop_resting(self, needed: int | None = None) -> int:
        """Removes files that nobody brings now, until needed bytes are free (None: all). Returns the bytes freed."""
        freed = 0
        with self._lock, disk.storing("cannot remove files"):
            for oid in list(self._resting):
                if needed is not None and freed >= needed:
                    break
                freed += self._resting[oid].size_bytes
                self._drop(oid)
        return freed

    def relieve(self, size_bytes: int) -> bool:
        """The disk is full after all: evicts once. False if nothing could go."""
        with self._lock:
            return self._ledger.evict(size_bytes) > 0

    def close(self) -> None:
        """The store closes: files in use are left as they are, for the next start."""
        with self._lock:
            for file in list(self._open.values()):
                file.close()

    # for UnnamedFile

    def leave(self, file: UnnamedFile, hold: Hold) -> None:
        with self._lock, disk.storing(f"cannot close the file {file.oid}"):
            if self._open.get(file.oid) is not file:
                return
            del self._open[file.oid]
            if file.cid is None:
                self._rest(file.oid, hold)
            else:
                self._drop(file.oid)

    # private

    def _rest(self, oid: str, hold: Hold) -> None:
        """What was opened and never got a byte leaves nothing."""
        hold.release()
        found = disk.stat_if_there(oid, dir_fd=self.folder)
        if found is not None and found.st_size == 0:
            self._drop(oid)
        elif found is not None:
            self._count(oid)

    def _count(self, oid: str) -> None:
        found = os.stat(oid, dir_fd=self.folder, follow_symlinks=False)
        used = min(found.st_size, found.st_blocks * 512)  # holes take nothing
        self._resting[oid] = self._ledger.hold(used, landed_bytes=used)

    def _drop(self, oid: str) -> None:
        hold = self._resting.pop(oid, None)
        self._remove(f"{oid}{record.SUFFIX}")
        self._remove(oid)
        if hold is not None:
            hold.release()

    def _remove(self, name: str) -> None:
        disk.unlink_if_there(name, dir_fd=self.folder)

    def _keep_whole(self, oid: str) -> None:
        """One link: no blob has these bytes yet, so they may be written to again, and are hashed before they count.
        Several: a blob has them."""
        found = os.stat(oid, dir_fd=self.folder, follow_symlinks=False)
        if found.st_nlink != 1:
            self._drop(oid)
            return
        os.chmod(oid, 0o600, dir_fd=self.folder)
        if disk.stat_if_there(f"{oid}{record.SUFFIX}", dir_fd=self.folder) is None:
            name = f"{oid}{record.SUFFIX}"
            whole = Ranges()
            whole.add(0, found.st_size)
            disk.write_file(name, record.head(found.st_size) + record.entries(whole), dir_fd=self.folder)
        self._count(oid)
