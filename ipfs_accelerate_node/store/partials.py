"""All partial files: those in use, and those that rest until someone asks for them again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import Conflict, QuotaExceeded
from ipfs_accelerate_node.store import disk, record
from ipfs_accelerate_node.store.blobs import Blobs
from ipfs_accelerate_node.store.failpoints import Failpoints
from ipfs_accelerate_node.store.layout import Layout, canonical_name
from ipfs_accelerate_node.store.partial import PartialFile
from ipfs_accelerate_node.store.quota import Hold, Ledger, Reservation

INGEST_PREFIX = "ingest-"


class Partials:
    """One `PartialFile` per CID, shared by all who bring that file at the same time."""

    def __init__(
        self,
        layout: Layout,
        blobs: Blobs,
        ledger: Ledger,
        failpoints: Failpoints,
        on_corrupt: Callable[[Cid, str], object],
    ) -> None:
        self.layout = layout
        self.blobs = blobs
        self.failpoints = failpoints
        self._ledger = ledger
        self._on_corrupt = on_corrupt
        self._lock: threading.RLock = ledger.lock
        self._open: dict[Cid, PartialFile] = {}
        self._resting: dict[Cid, Hold] = {}

    def scan(self) -> None:
        """At start: drops temporary files, counts what rests."""
        names = set(os.listdir(self.layout.partial))
        for name in names:
            cid = canonical_name(name.removesuffix(record.SUFFIX))
            if cid is None or str(cid) not in names:
                disk.unlink_if_there(name, dir_fd=self.layout.partial)
            elif not name.endswith(record.SUFFIX):
                self._count(cid)

    def open(self, cid: Cid, size: int, reservation: Reservation | None) -> PartialFile:
        """Raises QuotaExceeded, Conflict if it is open with another size."""
        cid = cid.canonical
        with self._lock, disk.storing(f"cannot open the partial file of {cid}"):
            self.layout.check()
            if (known := self._open.get(cid)) is not None:
                if known.size != size:
                    raise Conflict(f"{cid} is being fetched with {known.size} bytes, not {size}")
                known.users += 1
                return known
            hold = self._resting.pop(cid, None) or self._ledger.hold()
            fd = self._open_data(cid, size, hold, reservation)
            part = PartialFile(self, cid, size, fd, hold)
            try:
                part.load()
            except OSError:
                os.close(fd)
                self.rest(cid, hold)
                raise
            self._open[cid] = part
            return part

    def opened(self, cid: Cid) -> PartialFile | None:
        """The partial file of that CID if someone brings it now."""
        with self._lock:
            return self._open.get(cid.canonical)

    def block(self, cid: Cid) -> bytes | None:
        with self._lock:
            parts = list(self._open.values())
        for part in parts:
            if (block := part.block(cid)) is not None:
                return block
        return None

    def close(self) -> None:
        """The store closes: files in use are left as they are, for the next start."""
        with self._lock:
            for part in list(self._open.values()):
                part.users = 1
                part.close()

    def is_open(self) -> bool:
        return bool(self._open)

    def resting_bytes(self) -> int:
        with self._lock:
            return sum(hold.size_bytes for hold in self._resting.values())

    def drop_resting(self, needed: int | None = None) -> int:
        """Removes files that nobody brings now, until needed bytes are free (None: all). Returns the bytes freed."""
        freed = 0
        with self._lock:
            for cid in list(self._resting):
                if needed is not None and freed >= needed:
                    break
                freed += self._resting[cid].size_bytes
                self.remove(cid)
        return freed

    def adopt(self, name: str, dir_fd: int, cid: Cid) -> None:
        """At start: a file of unknown state becomes a part, whose leaves are hashed when someone asks for them."""
        if disk.stat_if_there(str(cid), dir_fd=self.layout.partial) is not None:
            self.layout.set_aside(name, dir_fd)
            return
        os.chmod(name, 0o600, dir_fd=dir_fd)
        os.rename(name, str(cid), src_dir_fd=dir_fd, dst_dir_fd=self.layout.partial)

    # for PartialFile

    def forget(self, cid: Cid) -> None:
        with self._lock:
            self._open.pop(cid, None)

    def leave(self, part: PartialFile, hold: Hold) -> bool:
        """One user less. True if that was the last, and the file rests now."""
        with self._lock, disk.storing(f"cannot close the partial file of {part.cid}"):
            part.users -= 1
            if part.users > 0 or self._open.get(part.cid) is not part:
                return False
            self.rest(part.cid, hold)
            return True

    def rest(self, cid: Cid, hold: Hold) -> None:
        with self._lock:
            self._open.pop(cid, None)
            hold.release()
            self._count(cid)

    def remove(self, cid: Cid) -> None:
        with self._lock, disk.storing(f"cannot remove the partial file of {cid}"):
            part, hold = self._open.pop(cid, None), self._resting.pop(cid, None)
            for name in (f"{cid}{record.SUFFIX}", str(cid)):
                disk.unlink_if_there(name, dir_fd=self.layout.partial)
            if part is not None:
                part.drop_hold()
            if hold is not None:
                hold.release()

    def relieve(self, size_bytes: int) -> bool:
        """The disk is full after all: evicts once. False if nothing could go."""
        with self._lock:
            return self._ledger.evict(size_bytes) > 0

    def corrupt(self, name: str, reason: str) -> None:
        if (cid := canonical_name(name)) is not None:
            self._on_corrupt(cid, reason)

    # private

    def _count(self, cid: Cid) -> None:
        found = disk.stat_if_there(str(cid), dir_fd=self.layout.partial)
        if found is not None:
            used = min(found.st_size, found.st_blocks * 512)  # holes take nothing
            self._resting[cid] = self._ledger.hold(used, landed_bytes=used)

    def _open_data(self, cid: Cid, size: int, hold: Hold, reservation: Reservation | None) -> int:
        try:
            hold.resize(size, source=reservation)
        except QuotaExceeded:
            self.rest(cid, hold)
            raise
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(str(cid), flags, 0o600, dir_fd=self.layout.partial)
        except OSError:
            self.rest(cid, hold)
            raise
        return fd
