"""Small hidden files of the Hub's commits (``.gitattributes`` and its like), by oid, beside the shelf.

No root has them, so no model keeps them; but a snapshot counts as whole for the Hub's own tools only with them. What
was seen of them once, brought for a client or found in a user's cache, lies in ``<cache>/hub/hidden/<oid>``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from pathlib import Path

from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.store import disk

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 10  # of one; they are a few kB
MAX_FILES = 2048  # the longest unwritten goes first


def oid_of_bytes(data: bytes, like: str) -> str:
    """What the Hub calls these bytes; like: an oid of the same kind."""
    if len(like) == 64:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class HiddenFiles:
    """Blocks; may be used from several threads. What cannot be written is not kept."""

    def __init__(self, cache: Path) -> None:
        self._root = cache / "hub" / "hidden"
        self._lock = threading.Lock()
        for left in self._root.glob("*.tmp"):  # by a crash
            left.unlink(missing_ok=True)

    def keep_file(self, file: HubFile, path: Path) -> bool:
        """See `keep`. path: where its bytes lie."""
        if file.size > MAX_BYTES:
            return False
        try:
            return self.keep(file, path.read_bytes())
        except OSError as exc:
            log.info("hub_hidden.gone path=%s reason=%s", ascii(file.path[:200]), exc.strerror)
            return False

    def keep(self, file: HubFile, data: bytes) -> bool:
        """False for what is too large, has another oid, or cannot be written."""
        if file.size > MAX_BYTES or len(data) != file.size or oid_of_bytes(data, file.oid) != file.oid:
            return False
        with self._lock:
            if self.find(file) is not None:
                return True
            try:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = disk.open_directory(self._root)
                try:
                    disk.write_file(file.oid, data, dir_fd=fd, mode=0o400)
                finally:
                    os.close(fd)
                self._make_room()
            except OSError as exc:
                log.warning("hub_hidden.not_written path=%s reason=%s", ascii(file.path[:200]), exc.strerror)
                return False
            return True

    def find(self, file: HubFile) -> Path | None:
        """Where its bytes lie, read through just now; read-only. What went bad is removed."""
        if file.size > MAX_BYTES:
            return None
        path = self._root / file.oid
        try:
            fd = disk.open_directory(self._root)
            try:
                data = disk.read_file(file.oid, dir_fd=fd, limit_bytes=MAX_BYTES)
            finally:
                os.close(fd)
        except OSError:
            return None
        if len(data) == file.size and oid_of_bytes(data, file.oid) == file.oid:
            return path
        log.warning("hub_hidden.damaged oid=%s", file.oid)
        path.unlink(missing_ok=True)
        return None

    def _make_room(self) -> None:
        for path in sorted(self._root.iterdir(), key=lambda path: path.lstat().st_mtime)[:-MAX_FILES]:
            path.unlink(missing_ok=True)
