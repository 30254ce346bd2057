"""Files of the store that are hard links of a user's cache too: whether anybody changed one.

Of each its inode, size and time of change are kept in ``<cache>/links.json``. One that differs, or that somebody
made writable, is made read-only again and its models are read through; what is corrupt is quarantined, as by `verify`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterable

import msgspec

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import InvalidCid, NodeError, NotFound
from ipfs_accelerate_node.store import Store, disk

log = logging.getLogger(__name__)

LOOK_S = 60.0
NAME = "links.json"
MAX_FILE_BYTES = 64 << 20
Mark = tuple[int, int, int]  # inode, size, nanoseconds of the last change


class LinkWatch:
    """Safe to call from several threads. `look` blocks for as long as it takes to read what was changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._marks = self._read()

    def note(self, cids: Iterable[Cid]) -> None:
        """These files have a link elsewhere now. Durable before it returns. Raises StorageError."""
        with self._lock:
            new = {str(cid.canonical): mark for cid in cids if (mark := self._mark(cid)) is not None}
            if new.items() - self._marks.items():
                self._marks |= new
                self._write()

    def look(self) -> list[Cid]:
        """The files that turned out to be corrupt, which are out of the store now. Raises StorageError."""
        with self._lock:
            marks = dict(self._marks)
        corrupt: list[Cid] = []
        for name, mark in marks.items():
            now = self._mark(cid := Cid.parse(name))
            if now == mark and not self._is_writable(cid):
                continue
            if now is not None:
                log.warning("hf_cache.link_changed file=%s", cid)
                self._protect(cid)
                corrupt += self._read_through(cid)
                now = self._mark(cid)
            with self._lock:
                self._marks.pop(name, None)
                if now is not None:
                    self._marks[name] = now
                self._write()
        return corrupt

    async def run(self) -> None:
        """Looks now and then, until it is cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.look)
            except NodeError as exc:
                log.warning("hf_cache.watch_failed reason=%s", exc)
            await asyncio.sleep(LOOK_S)

    # private

    def _stat(self, cid: Cid) -> os.stat_result | None:
        with disk.storing(f"cannot look at {cid}"):
            return disk.stat_if_there(str(cid.canonical), dir_fd=self._store.layout.blobs)

    def _mark(self, cid: Cid) -> Mark | None:
        found = self._stat(cid)
        return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)

    def _is_writable(self, cid: Cid) -> bool:
        found = self._stat(cid)
        return found is not None and bool(found.st_mode & 0o222)

    def _protect(self, cid: Cid) -> None:
        with disk.storing(f"cannot make {cid} read-only"), contextlib.suppress(FileNotFoundError):
            fd = disk.open_read(str(cid.canonical), dir_fd=self._store.layout.blobs)
            try:
                if stat.S_IMODE(os.fstat(fd).st_mode) != 0o400:
                    os.fchmod(fd, 0o400)
            finally:
                os.close(fd)

    def _read_through(self, cid: Cid) -> list[Cid]:
        """Hashes every model that holds the file; for a file of none, all that is here."""
        roots: list[Cid | None] = []
        for model in self._store.models():
            plan = self._store.plan(model.root)
            if plan is not None and any(file.cid.canonical == cid.canonical for file in plan.files):
                roots.append(model.root)
        for root in roots or [None]:
            with contextlib.suppress(NotFound):  # quarantined with another model, or removed
                if any(bad.cid.canonical == cid.canonical for bad in self._store.verify(root).corrupt):
                    return [cid]
        return []

    def _read(self) -> dict[str, Mark]:
        try:
            data = disk.read_file(NAME, dir_fd=self._store.layout.root_fd, limit_bytes=MAX_FILE_BYTES)
            found = msgspec.json.decode(data, type=dict[str, Mark])
            return {str(Cid.parse(name)): mark for name, mark in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, InvalidCid) as exc:
            log.warning("hf_cache.marks_unreadable reason=%s", exc)
            return {}

    def _write(self) -> None:
        with disk.storing("cannot note what is watched"):
            disk.write_file(NAME, msgspec.json.encode(self._marks), dir_fd=self._store.layout.root_fd)
