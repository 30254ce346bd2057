"""Roots that Kubo is yet to give up: models whose user took them back. Kept in ``<cache>/withdrawals.json``.

Noted before Kubo is told, and crossed off once it has done so: a daemon that is not our own may be away for days.
"""

from __future__ import annotations

import logging
import threading

import msgspec

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import InvalidCid
from ipfs_accelerate_node.store import Store, disk

log = logging.getLogger(__name__)

NAME = "withdrawals.json"
MAX_FILE_BYTES = 4 << 20


class Withdrawals:
    """Blocks; may be used from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()

    def pending(self) -> list[Cid]:
        with self._lock:
            return self._read()

    def note(self, root: Cid) -> None:
        """Durable before it returns. Raises StorageError."""
        with self._lock:
            roots = self._read()
            if root.canonical not in roots:
                self._write([*roots, root.canonical])

    def done(self, root: Cid) -> None:
        """Kubo has given it up, or may have it again. Raises StorageError."""
        with self._lock:
            roots = self._read()
            if root.canonical in roots:
                self._write([other for other in roots if other != root.canonical])

    def _read(self) -> list[Cid]:
        try:
            data = disk.read_file(NAME, dir_fd=self._store.layout.root_fd, limit_bytes=MAX_FILE_BYTES)
            return [Cid.parse(text).canonical for text in msgspec.json.decode(data, type=list[str])]
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError, InvalidCid) as exc:
            log.warning("withdrawals.unreadable reason=%s", exc)
            return []

    def _write(self, roots: list[Cid]) -> None:
        with disk.storing("cannot note what Kubo is to give up"):
            disk.write_file(NAME, msgspec.json.encode([str(root) for root in roots]), dir_fd=self._store.layout.root_fd)
