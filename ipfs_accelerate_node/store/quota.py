"""Who may use how much of the disk: nothing is written before its bytes are held here.

used = stored (distinct files and node blocks, from the index) + holds (reservations, and files being written at their
full size). A hold never turns into stored bytes twice: committing a file drops its hold under the same lock that adds
its row. So used never exceeds the quota, what is in flight included.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ipfs_accelerate_node.errors import NodeError, QuotaExceeded

_DISK_RESERVE_BYTES = 1 << 30  # left to the rest of the system; at most 1 % of a small disk
_LOOKED_BEFORE_S = 60.0


class Hold:
    """size_bytes: counted as used. landed_bytes: the part of it that is on disk already."""

    def __init__(self, ledger: Ledger, size_bytes: int, landed_bytes: int = 0) -> None:
        self._ledger = ledger
        self.size_bytes = size_bytes
        self.landed_bytes = landed_bytes
        self.closed = False

    def resize(self, size_bytes: int, *, source: Reservation | None = None) -> None:
        """Growth comes out of source (or any open reservation) as far as that goes, then out of free room.

        Raises QuotaExceeded, and then changes nothing.
        """
        self._ledger.resize(self, size_bytes, source)

    def land(self, count: int) -> None:
        """Without the lock: each hold has one writer, and writing must not wait for a commit elsewhere."""
        self.landed_bytes = min(self.size_bytes, self.landed_bytes + count)

    def release(self) -> None:
        self._ledger.drop(self)


class Reservation:
    """Room that a writer has been promised. Leaving the context gives back what was not used."""

    def __init__(self, ledger: Ledger, hold: Hold) -> None:
        self._ledger = ledger
        self.hold = hold
        self.since_s = time.monotonic()

    @property
    def size_bytes(self) -> int:
        """What is still promised and not used."""
        return self.hold.size_bytes

    def grow(self, size_bytes: int) -> None:
        """Raises QuotaExceeded; the reservation then stays as it was."""
        self._ledger.grow(self.hold, size_bytes)

    def spend(self, size_bytes: int) -> None:
        """So many of its bytes are counted elsewhere now."""
        with self._ledger.lock:
            self.hold.size_bytes = max(0, self.hold.size_bytes - size_bytes)
            self.hold.landed_bytes = max(0, self.hold.landed_bytes - size_bytes)

    def release(self) -> None:
        self._ledger.end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Ledger:
    """Owns every hold. lock: the store's; a check and the change that relies on it happen under it."""

    def __init__(
        self,
        *,
        quota_bytes: int | None,
        disk_fd: int,
        lock: threading.RLock,
        stored_bytes: Callable[[], int],
    ) -> None:
        self.quota_bytes = quota_bytes
        self.lock = lock
        self.evictable: Callable[[], int] = int
        self.evict: Callable[[int], int] = lambda _needed: 0
        self.all_released: Callable[[], None] = lambda: None
        self._disk_fd = disk_fd
        self._stored_bytes = stored_bytes
        self._holds: set[Hold] = set()
        self._reservations: list[Reservation] = []

    def used_bytes(self) -> int:
        with self.lock:
            return self._stored_bytes() + sum(hold.size_bytes for hold in self._holds)

    def room_bytes(self) -> int:
        """What may still be written without evicting anything; negative when the disk has got fuller than it may."""
        with self.lock:
            unwritten = sum(hold.size_bytes - hold.landed_bytes for hold in self._holds)
            disk = os.fstatvfs(self._disk_fd)
            reserve = min(_DISK_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 100)
            room = disk.f_bavail * disk.f_frsize - reserve - unwritten
            if self.quota_bytes is not None:
                room = min(room, self.quota_bytes - self.used_bytes())
            return room

    @property
    def transferring(self) -> bool:
        return bool(self._reservations)

    def guards(self, touched_s: float) -> bool:
        """Whether a file that was asked for then (monotonic clock) may be counted on by a transfer under way: it may
        have looked just before it reserved."""
        return any(touched_s >= reservation.since_s - _LOOKED_BEFORE_S for reservation in self._reservations)

    def hold(self, size_bytes: int = 0, *, landed_bytes: int = 0) -> Hold:
        """Counts what is on disk already, whatever the quota says."""
        with self.lock:
            hold = Hold(self, size_bytes, landed_bytes)
            self._holds.add(hold)
            return hold

    def reserve(self, size_bytes: int) -> Reservation:
        """Evicts if need be. Raises QuotaExceeded."""
        with self.lock:
            reservation = Reservation(self, self.hold())
            self._reservations.append(reservation)
            try:
                self.grow(reservation.hold, size_bytes)
            except NodeError:
                self.end(reservation)
                raise
            return reservation

    def grow(self, hold: Hold, size_bytes: int) -> None:
        with self.lock:
            self.make_room(size_bytes)
            hold.size_bytes += size_bytes

    def resize(self, hold: Hold, size_bytes: int, source: Reservation | None) -> None:
        with self.lock:
            missing = size_bytes - hold.size_bytes
            taken: list[tuple[Reservation, int]] = []
            for reservation in [source] if source is not None else self._reservations:
                part = min(max(0, missing), reservation.size_bytes)
                taken.append((reservation, part))
                missing -= part
            for reservation, part in taken:
                reservation.hold.size_bytes -= part
            if missing > 0:
                try:
                    self.make_room(missing + sum(part for _, part in taken))
                except QuotaExceeded:
                    for reservation, part in taken:
                        reservation.hold.size_bytes += part
                    raise
            hold.size_bytes = size_bytes
            hold.landed_bytes = min(hold.landed_bytes, size_bytes)

    def make_room(self, size_bytes: int) -> None:
        """Evicts until size_bytes fit; nothing at all if they cannot. Raises QuotaExceeded."""
        with self.lock:
            room = self.room_bytes()
            if size_bytes <= room:
                return
            possible = room + self.evictable()
            if size_bytes <= possible:
                self.evict(size_bytes - room)
                room = self.room_bytes()
                if size_bytes <= room:
                    return
            limit = "the disk's free space" if self.quota_bytes is None else f"the quota of {self.quota_bytes} bytes"
            raise QuotaExceeded(
                f"{size_bytes} bytes do not fit into {limit}: {max(0, possible)} are free or can be freed",
                needed_bytes=size_bytes,
                available_bytes=max(0, possible),
            )

    def drop(self, hold: Hold) -> None:
        with self.lock:
            hold.closed = True
            self._holds.discard(hold)

    def end(self, reservation: Reservation) -> None:
        with self.lock:
            self.drop(reservation.hold)
            if reservation in self._reservations:
                self._reservations.remove(reservation)
                if not self._reservations:
                    self.all_released()
